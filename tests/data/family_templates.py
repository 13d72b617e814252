"""Stand-ins for the chat templates of further families: the published ones' form, other words.

What a stand-in keeps is what decides ids: which marks stand where, what is trimmed and cut, where roles have to
alternate, what stands before a conversation without a system message, what the generation prompt ends in.
"""

from tests.data.templates import QWEN3, QWEN25, SMOLLM3

GEMMA2 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('nobody is called system') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}
        {%- set before = messages[0]['content'] + '\\n\\n' %}
    {%- else %}
        {%- set before = messages[0]['content'][0]['text'] + '\\n\\n' %}
    {%- endif %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set before = '' %}{%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (before if loop.first else '') }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- elif message['content'] is iterable %}
        {%- for item in message['content'] %}
            {{- '<start_of_image>' if item['type'] == 'image' else item['text'] | trim }}
        {%- endfor %}
    {%- else %}
        {{- raise_exception('no such content') }}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
MISTRAL1 = """{%- if messages[0]['role'] == 'system' %}
    {%- set before = messages[0]['content'] + '\\n\\n' %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set before = '' %}{%- set turns = messages %}
{%- endif %}{{ bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + (before if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}{{ raise_exception('users and assistants speak') }}{% endif %}
{%- endfor %}"""
_MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set before = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set asking = turns | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(index=0) %}
{%- for message in turns %}
    {%- if not (message.role == 'tool' or message.tool_calls is defined) %}
        {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and message == asking[-1] %}
            {{- '[AVAILABLE_TOOLS]_' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and before is defined %}
            {{- '[INST]_' + before + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]_' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS]_' + (message.tool_calls | tojson) + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {{- ANSWER + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS]_' + message.content | tojson + '[/TOOL_RESULTS]' }}
    {%- else %}{{ raise_exception('users and assistants speak') }}{% endif %}
{%- endfor %}"""
MISTRAL3 = _MISTRAL.replace("]_'", "] '").replace("ANSWER", "' ' + message['content'] | trim")
TEKKEN = _MISTRAL.replace("]_'", "]'").replace("ANSWER", "message['content']")
MISTRAL7 = """{%- set today = strftime_now('%Y-%m-%d') %}
{%- set usual = 'Be of help.\\nToday it is ' + today + '.' %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set before = messages[0]['content'] %}
    {%- if before is not string %}{%- set before = before[0]['text'] %}{%- endif %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set before = usual %}{%- set turns = messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + before + '[/SYSTEM_PROMPT]' }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}{%- for block in message['content'] %}{{- block['text'] }}{%- endfor %}{{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- else %}{{ raise_exception('users, systems and assistants speak') }}{% endif %}
{%- endfor %}"""
_GRANITE = """{%- if messages[0]['role'] == 'system' %}
    {%- set before = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set before = USUAL %}
    {%- if tools and documents %}{%- set before = before + ' Use tools and documents.' %}
    {%- elif thinking %}{%- set before = before + ' Think first.' %}{%- endif %}
    {%- set turns = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + before + '<|end_of_text|>\\n' }}
{%- for message in turns %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""
GRANITE30 = """{%- for message in messages %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""
GRANITE31 = _GRANITE.replace("USUAL", "'Known until: April.\\nToday: ' + strftime_now('%B %d, %Y') + '.\\nBe of help.'")
OLMO2 = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}
{%- elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}
{%- elif message['role'] == 'assistant' %}
    {%- if not loop.last %}{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}
    {%- else %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{%- endif %}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
{%- endfor %}"""
_OLMO3 = """{%- set given = messages | selectattr('role', 'equalto', 'system') | list | length > 0 -%}
{%- if not given -%}{{- '<|im_start|>system\\nBe of help. <functions></functions><|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- '<|im_start|>system\\n' + message['content'] -}}
        {%- if message.get('functions', none) is not none -%}
            {{- ' <functions>' + message['functions'] + '</functions>' -}}
        {%- else -%}
            {{- ' <functions></functions>' -}}
        {%- endif -%}
        {{- '<|im_end|>\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- if message.get('content', none) is not none -%}{{- message['content'] -}}{%- endif -%}
        {%- if not loop.last -%}{{- '<|im_end|>' + '\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}
    {%- endif -%}
    {%- if loop.last and add_generation_prompt -%}{{- '<|im_start|>assistant\\nOPENED' -}}{%- endif -%}
{%- endfor -%}"""
OLMO3, OLMO3_THINK = _OLMO3.replace("OPENED", ""), _OLMO3.replace("OPENED", "<think>")
PHI3 = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}
{{- '<|system|>\\n' + message['content'] + '<|end|>\\n' }}
{%- elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '<|end|>\\n' }}
{%- elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
PHI4 = """{% for message in messages %}
{%- if message['role'] == 'system' %}{{ '<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>' }}
{%- elif message['role'] == 'user' %}{{ '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>' }}
{%- elif message['role'] == 'assistant' %}{{ '<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""
PHI4_MINI = """{% for message in messages %}
{%- if message['role'] == 'system' and 'tools' in message and message['tools'] %}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' }}
{%- else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""
EXAONE4 = """{%- if not skip_think is defined %}{%- set skip_think = true %}{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'assistant' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set role = message.role %}
    {%- if role == 'assistant' %}
        {{- '[|assistant|]\\n' }}
        {%- if message.content %}
            {%- if '</think>' in message.content %}
                {%- set content = message.content.split('</think>')[-1].strip() %}
                {%- set thought = message.content.split('</think>')[0].replace('<think>', '').strip() %}
            {%- else %}
                {%- set content = message.content %}
            {%- endif %}
            {%- if thought and not (skip_think and loop.index0 != ns.last) %}
                {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
            {%- else %}
                {{- '<think>\\n\\n</think>\\n\\n' }}
            {%- endif %}
            {{- content }}
        {%- endif %}
    {%- elif role == 'tool' %}
        {{- '[|tool|]\\n<tool_result>' + message.content + '</tool_result>' }}
    {%- else %}
        {{- '[|' + role + '|]\\n' + message.content }}
    {%- endif %}
    {{- '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[|assistant|]\\n' }}
    {%- if enable_thinking is defined and enable_thinking is true %}
        {{- '<think>\\n' }}
    {%- else %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
APERTUS = """{{ bos_token }}
{%- set thinking = enable_thinking if enable_thinking is defined else false -%}
{%- if messages[0].role == 'system' -%}
    {{- '<|system_start|>' + messages[0].content + '<|system_end|>' }}{%- set turns = messages[1:] -%}
{%- else -%}
    {{- '<|system_start|>Be of help.\\nKnown until: 2024-04\\nToday: ' + strftime_now('%Y-%m-%d') + '<|system_end|>' }}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|developer_start|>Thoughts: ' + ('on' if thinking else 'off') + '\\nTools: off<|developer_end|>' }}
{%- set ns = namespace(in_answer=false) -%}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {%- if ns.in_answer -%}{{- '<|assistant_end|>' }}{%- set ns.in_answer = false -%}{%- endif -%}
        {{- '<|user_start|>' }}
        {%- if message.content is string -%}{{- message.content }}
        {%- else -%}{%- for part in message.content.parts -%}{{- part.text }}{%- endfor -%}{%- endif -%}
        {{- '<|user_end|>' }}
    {%- elif message.role == 'assistant' -%}
        {%- if not ns.in_answer -%}{{- '<|assistant_start|>' }}{%- set ns.in_answer = true -%}{%- endif -%}
        {%- if message.content is string -%}{{- message.content }}
        {%- else -%}{{ raise_exception('no such content') }}{%- endif -%}
    {%- else -%}{{ raise_exception('no such role') }}{%- endif -%}
{%- endfor -%}
{%- if ns.in_answer -%}{{- '<|assistant_end|>' }}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' }}{%- endif -%}"""
TEMPLATES = {
    "Gemma 2": GEMMA2,
    "Gemma 3": GEMMA3,
    "Mistral v1": MISTRAL1,
    "Mistral v3": MISTRAL3,
    "Mistral tekken": TEKKEN,
    "Mistral v7": MISTRAL7,
    "Qwen2.5": QWEN25,
    "Qwen3": QWEN3,
    "SmolLM3": SMOLLM3,
    "Granite 3.0": GRANITE30,
    "Granite 3.1": GRANITE31,
    "OLMo 2": OLMO2,
    "OLMo 3": OLMO3,
    "OLMo 3 Think": OLMO3_THINK,
    "Phi-3": PHI3,
    "Phi-4": PHI4,
    "Phi-4 mini": PHI4_MINI,
    "EXAONE 4": EXAONE4,
    "Apertus": APERTUS,
}
