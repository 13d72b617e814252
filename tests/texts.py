"""Real text of many kinds, for comparing tokenizers: name of the kind -> lines. Made of what every machine has."""

import ast
import email.parser
import html.entities
import inspect
import json.decoder
import textwrap
import unicodedata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = """
All human beings are born free and equal in dignity and rights.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.
Tous les êtres humains naissent libres et égaux en dignité et en droits. C'est l'été; où es-tu, « cœur » ?
Todos los seres humanos nacen libres e iguales en dignidad y derechos. ¿Qué? ¡Mañana!
Todos os seres humanos nascem livres e iguais em dignidade e em direitos. São João, ação, coração.
Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Perché no? L'amico dell'università.
Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. 's Avonds is het koud.
Alla människor är födda fria och lika i värde och rättigheter. Räksmörgås på ön.
Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Epäjärjestelmällisyydellänsäkään.
Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Zażółć gęślą jaźń.
Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Příliš žluťoučký kůň.
Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Árvíztűrő tükörfúrógép.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İstanbul'da ılık ığdır.
Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
Все люди рождаются свободными и равными в своём достоинстве и правах. Съешь ещё этих мягких булок.
Всі люди народжуються вільними і рівними у своїй гідності та правах. Їжак і ґанок.
Всички хора се раждат свободни и равни по достойнство и права.
Բոլոր մարդիկ ծնվում են ազատ ու հավասար՝ իրենց արժանապատվությամբ և իրավունքներով։
ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. שָׁלוֹם
يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. السَّلَامُ عَلَيْكُمْ
تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.
تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।
மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.
ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు.
ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.
മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും അന്തസ്സോടും സ്വാതന്ത്ര്യത്തോടുംകൂടി ജനിച്ചവരാണ്.
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ
ມະນຸດເກີດມາມີສິດເສລີພາບ ແລະ ສະເໝີໜ້າກັນໃນທາງກຽດຕິສັກ.
လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် လည်းကောင်း မွေးဖွားလာသူများ ဖြစ်သည်။
មនុស្សទាំងអស់ កើតមកមានសេរីភាព និងសមភាព។
ሰው፡ሁሉ፡ነጻ፡ሆኖ፡ሲወለድ፡በክብርና፡በመብትም፡እኩልነት፡ያለው፡ነው።
人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。
人人生而自由﹐在尊嚴和權利上一律平等。第１２３條、㈠、Ⅷ。
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。ｶﾀｶﾅ㍿。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 한글 자모
Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.
Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba.
ʻO nā kānaka apau loa i hānau kūʻokoʻa ʻia.
Ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς τὸν θεόν. Arma virumque canō, Trōiae quī prīmus ab ōrīs.
""".strip().split("\n")
SYMBOLS = r"""
Hello 👋🏽, family 👨‍👩‍👧‍👦, flags 🇩🇪🇯🇵🏴󠁧󠁢󠁳󠁣󠁴󠁿, heart ❤️ and ❤︎, keycap 1️⃣, 🙂🙃🫠 and 🧑🏿‍🚀!!!
∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β), ∑_{i=1}^n i = n(n+1)/2, ∫₀^∞ e^{-x²}dx = √π/2, 𝔄𝕭𝒞𝟙𝟚
\begin{align} \frac{\partial L}{\partial r} &= -\beta, p(y \mid x) &= \prod_t \pi_\theta(y_t \mid x, y_{<t}) \end{align}
<div class="a b" onclick='f("x")'>&nbsp;<b>bold</b> &amp; <i>it</i><!-- no --></div>
{"a": [1, 2.5e-10, null, true], "b": {"c": "\u00e9\n\"q\""}}
SELECT COUNT(*) FROM t WHERE x >= 10 AND y LIKE '%z_' -- comment
int main(void) { for (int i = 0; i < 10; ++i) printf("%d\n", i); return 0; } /* C */
fn main() { let v: Vec<u32> = (0..10).filter(|x| x % 2 == 0).collect(); println!("{:?}", v); }
const f = async (x) => { await new Promise(r => setTimeout(r, 1000)); return `${x ?? 'none'}`; };
public static <T extends Comparable<T>> T max(List<? extends T> xs) { return xs.get(0); }
#!/usr/bin/env bash\nset -euo pipefail; for f in *.txt; do echo "${f%.txt}" | tr a-z A-Z >>out 2>&1; done
main = mapM_ print . takeWhile (< 100) $ [x ^ 2 | x <- [1 ..], odd x] -- Haskell
| a | b |\n|---|---|\n| `x` | **y** |\n\n- [ ] todo ~~gone~~ [link](https://example.org/?q=a%20b&c=d#e)
1234567890 1,234,567.89 0x1F 1e-9 +49 (0)30 123456 2024-06-01T12:34:56.789Z 192.168.0.1 ::1 v2.0.1-rc.3
I'm you're he'd we'll they've it's don't I'M YOU'RE HE'D WE'LL THEY'VE IT'S DON'T 'S 'ſ ’s ’T
snake_case camelCase PascalCase SCREAMING_CASE kebab-case dotted.name a::b a->b a=>b ... --- ___ *** ###
ａｂｃ ﬁ ﬂ ½ ² ③ Ⅳ ℃ № ™ … — – ‘’ “” „ ‚ ‹› «» † ‡ • ‰ € £ ¥ ₿ ¢ § ¶ © ®
<|eot_id|> <|begin_of_text|> <s> </s> [INST] [/INST] <<SYS>> <|im_start|>user <tool_call> <unk> <pad>
""".strip().split("\n")


def kinds() -> dict[str, list[str]]:
    """Every kind and its lines; no line is there twice."""
    made = {
        "languages": LANGUAGES,
        "languages, upper case and spread": [t.upper() for t in LANGUAGES] + [" ".join(t[:80]) for t in LANGUAGES],
        "combining marks taken apart": [unicodedata.normalize("NFD", t) for t in LANGUAGES],
        "symbols, markup and code of many languages": SYMBOLS,
        "Python source": _source(ast) + _source(inspect) + _source(email.parser),
        "indented blocks": [block for block in _source(textwrap, "\n\n") + _source(json.decoder, "\n\n")],
        "documentation": (ROOT / "README.md").read_text("utf-8").split("\n") + _paragraphs(),
        "blanks": [blank * n for blank in (" ", "\t", "\n", "\r\n", " \n", "\u00a0", "\u3000", "\u2028") for n in RUNS],
        "words among blanks": [f"{' ' * n}a{' ' * n}\n{' ' * n}b{chr(9) * n}1" for n in RUNS],
        "control characters": [f"a{chr(c)}b {chr(c)}{chr(c)} {chr(c)}1" for c in [*range(32), *range(127, 160)]],
        "repeated letters": [
            letter * n for letter in ("a", "=", "-", "0", "é", "世", "🙂", "ab", "aaab") for n in RUNS
        ],
        "very long words": [w * (n // len(w)) for w in ("a", "xY9", "世界") for n in (24_999, 25_000, 25_001, 60_000)],
        "very long blanks": [f"a{blank * n}b" for blank in (" ", "\n") for n in (25_000, 25_001, 50_001)],
        "longer than a window": [("word " * 85_000) + "end", "x" * 24_000 + (" y" * 200_000)],
        "every 97th letter": [
            f"a{chr(c)}b {chr(c)}{chr(c)} 1{chr(c)}" for c in range(0xA0, 0x30000, 97) if _is_text(c)
        ],
        "entities": [f"{name} {value}" for name, value in list(html.entities.html5.items())[::9]],
    }
    seen: set[str] = set()
    return {kind: [t for t in texts if t and not (t in seen or seen.add(t))] for kind, texts in made.items()}


RUNS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 83, 129)


def _is_text(c: int) -> bool:
    return not 0xD800 <= c < 0xE000


def _source(module: object, between: str = "\n") -> list[str]:
    return inspect.getsource(module).split(between)  # pyright: ignore[reportArgumentType]


def _paragraphs() -> list[str]:
    return [p for path in sorted((ROOT / "docs").glob("*.md")) for p in path.read_text("utf-8").split("\n\n")]
