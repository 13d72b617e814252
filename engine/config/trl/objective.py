"""Which objective a file for TRL asks for, and with which hyperparameters."""

from decimal import Decimal

from engine.config.trl.defaults import Trainer
from engine.config.trl.draft import Draft, as_number, plain, shown

LOSSES: dict[Trainer, dict[str, str]] = {  # what stands in loss_type -> ours
    "dpo": {
        "sigmoid": "dpo",
        "hinge": "hinge",
        "ipo": "ipo",
        "exo_pair": "exo",
        "nca_pair": "nca",
        "robust": "robust_dpo",
        "bco_pair": "bco_pair",
        "sppo_hard": "sppo",
        "aot": "aot",
        "aot_unpaired": "aot_unpaired",
        "aot_pair": "aot_unpaired",  # as TRL called it before 0.27
        "apo_zero": "apo_zero",
        "apo_down": "apo_down",
        "discopop": "discopop",
        "sft": "sft",
        "sigmoid_norm": "ln_dpo",
        "kto_pair": "kto_pair",
    },
    "kto": {"kto": "kto", "apo_zero_unpaired": "apo_zero_unpaired", "bco": "bco"},
    "cpo": {"sigmoid": "cpo", "simpo": "simpo", "hinge": "slic"},
    "orpo": {"orpo": "orpo"},
}
"""Objectives of each trainer by their names there."""
DEFAULT: dict[Trainer, str] = {"dpo": "sigmoid", "kto": "kto", "cpo": "sigmoid", "orpo": "orpo"}
"""What a file without loss_type trains."""
SMOOTHED = ("robust_dpo", "exo", "aot", "aot_unpaired")
"""Objectives whose labels TRL smooths; its sigmoid takes them as they are since 0.29."""
_NAMES = (
    *("loss_type", "loss_weights", "label_smoothing", "ld_alpha", "use_weighting", "f_divergence_type"),
    *("f_alpha_divergence_coef", "discopop_tau", "rpo_alpha", "cpo_alpha", "simpo_gamma", "alpha"),
    *("desirable_weight", "undesirable_weight"),
)


def trainer_of_loss(loss_type: object) -> Trainer | None:
    """The trainer that alone has an objective of that name; None where DPO's has it too, or none."""
    for name in loss_type if isinstance(loss_type, list) else [loss_type]:
        found: list[Trainer] = [trainer for trainer, known in LOSSES.items() if name in known]
        if len(found) == 1 and found[0] != "dpo":
            return found[0]
    return None


def translate_objective(draft: Draft) -> None:
    """--loss, --beta and the objective's hyperparameters."""
    if "loss" in draft.typed:  # whatever the file says of others is of no weight then
        draft.take(*_NAMES)
        if draft.has("beta"):
            draft.put("beta", draft.take("beta"), draft.named("beta"))
        return
    {"dpo": _dpo, "kto": _kto, "cpo": _cpo, "orpo": _orpo}[draft.trainer](draft)
    if draft.has("beta"):
        draft.put("beta", draft.take("beta"), draft.named("beta"))
    elif "loss" not in draft.ours:
        draft.default("beta", "0.1")


def _names(draft: Draft) -> list[str]:
    """What stands in loss_type, or the trainer's default; names that are not there are faults."""
    given = draft.take("loss_type")
    names = [DEFAULT[draft.trainer]] if given is None else given if isinstance(given, list) else [given]
    known = LOSSES[draft.trainer]
    for name in names:
        if name not in known:
            draft.faults.append(
                f"loss_type: {shown(name)} is not an objective of TRL's {draft.trainer.upper()} trainer that is "
                f"supported "
                f"here ({', '.join(known)}); use one of these, or an objective of this project by loss: NAME"
            )
    return [str(name) for name in names if name in known]


def _put_loss(draft: Draft, loss: str, said: str) -> None:
    """--loss; a default where the file does not name what it comes from."""
    if said:
        draft.put("loss", loss, said)
    else:
        draft.default("loss", loss)


def _said(draft: Draft, *names: str) -> str:
    """The first of some settings that is named, as it stands in the file; "" where none is."""
    return next((draft.named(name) for name in names if draft.has(name)), "")


# --- DPO -----------------------------------------------------------------------------------------------------------


def _dpo(draft: Draft) -> None:
    theirs = _names(draft)
    losses = [LOSSES["dpo"][name] for name in theirs]
    setting, name, hyperparameters = _variant(draft, theirs) or ("", "dpo", {})
    losses = [name if loss == "dpo" else loss for loss in losses]
    _put_loss(draft, _mixture(draft, losses), _said(draft, "loss_type", setting, "rpo_alpha"))
    for argument, value in hyperparameters.items():
        draft.put(argument, value, draft.named(setting))
    _smooth(draft, losses)
    if "bco_pair" in losses:
        draft.made.setdefault("bco_pair.shift", "false")
    if "kto_pair" in losses:  # TRL 0.7 to 0.9, whose anchors were means over what one device held
        draft.made.setdefault("kto_pair.detach", "false")
        draft.made.setdefault("kto_pair.anchor_size", str(draft.look("per_device_train_batch_size") or 8))
    if (tau := draft.take("discopop_tau")) is not None and "discopop" in losses:
        draft.put("discopop.tau", tau, draft.named("discopop_tau"))


def _mixture(draft: Draft, losses: list[str]) -> str:
    """Objectives with loss_weights, and with the likelihood of rpo_alpha beside them."""
    weights = draft.take("loss_weights")
    weights = weights if isinstance(weights, list) else [] if weights is None else [weights]
    if weights and len(weights) != len(losses):
        draft.faults.append(
            f"loss_weights: {shown(weights)} are {len(weights)} for {len(losses)} in loss_type; give one for each"
        )
        weights = []
    parts = [f"{name}:{weight}" for name, weight in zip(losses, weights, strict=True)] if weights else losses
    if (alpha := draft.number("rpo_alpha")) is not None and alpha != 0:
        if "sft" in losses:
            draft.refuse("rpo_alpha", "means sft with that weight, and loss_type names sft too; keep one")
        parts = [*(parts if weights else [f"{name}:1" for name in losses]), f"sft:{plain(alpha)}"]
    return ",".join(parts)


def _smooth(draft: Draft, losses: list[str]) -> None:
    """The smoothing of labels, of objectives that have it there."""
    smoothing = draft.number("label_smoothing") or Decimal(0)
    smoothed = [name for name in losses if name in SMOOTHED]
    for name in smoothed:
        draft.made.setdefault(f"{name}.label_smoothing", plain(smoothing))
    if "exo" in losses and not smoothing:
        draft.faults.append("loss_type: exo_pair needs a label_smoothing above 0; the paper has 0.001")
    if not draft.has("label_smoothing"):
        return
    if smoothed:
        draft.said.append(
            f"{draft.named('label_smoothing')} is --{smoothed[0]}.label_smoothing {plain(smoothing)} here"
        )
    elif smoothing == 0:
        return
    elif losses == ["dpo"]:
        draft.refuse(
            "label_smoothing",
            "turned loss_type: sigmoid into conservative DPO before TRL 0.29, and has no effect since; remove it, or "
            f"replace both by loss: cdpo and cdpo.label_smoothing: {plain(smoothing)} (--loss cdpo)",
        )
    else:
        draft.refuse(
            "label_smoothing", f"is not supported: labels of {', '.join(losses)} are taken as they are; remove it"
        )


def _variant(draft: Draft, theirs: list[str]) -> tuple[str, str, dict[str, str]] | None:
    """ld_alpha, use_weighting or f_divergence_type, the objective that it makes of TRL's sigmoid, its hyperparameters.

    Two of them at once, and one beside an objective that has no such variant here, are faults.
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    if draft.number("ld_alpha") is not None:
        found["ld_alpha"] = "ld_dpo", {"ld_dpo.alpha": str(draft.theirs["ld_alpha"])}
    if draft.truth("use_weighting"):
        found["use_weighting"] = "wpo", {}
    if divergence := _divergence(draft):
        found["f_divergence_type"] = "f_dpo", divergence
    if len(found) > 1:
        draft.faults.append(f"{' and '.join(found)}: each is an objective of its own here; keep one")
        return None
    for setting, variant in found.items():
        beside = {"sigmoid"} if setting == "use_weighting" else {"sigmoid", "sft"}  # weights would be those of sft too
        if not {"sigmoid"} <= set(theirs) <= beside:
            draft.refuse(
                setting,
                f"needs loss_type: sigmoid alone here, as --loss {variant[0]}; remove it, or use that loss_type",
            )
            return None
        return setting, *variant
    return None


def _divergence(draft: Draft) -> dict[str, str]:
    """f_dpo's hyperparameters; none where f_divergence_type is the one that DPO has."""
    given = draft.take("f_divergence_type")
    value = "reverse_kl" if given is None else shown(given).lower()
    coefficient = draft.number("f_alpha_divergence_coef")
    if value == "alpha_divergence":
        alpha = Decimal("0.5") if coefficient is None else coefficient
        return {"f_dpo.divergence": value, "f_dpo.alpha": str(1 - alpha)}
    known = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    if value not in known:
        draft.refuse("f_divergence_type", f"is not supported here; use one of {', '.join(known)}")
    elif value != "reverse_kl":
        return {"f_dpo.divergence": value}
    return {}


# --- KTO, CPO, ORPO ------------------------------------------------------------------------------------------------


def _kto(draft: Draft) -> None:
    said = _said(draft, "loss_type")
    losses = [LOSSES["kto"][name] for name in _names(draft)]
    if len(losses) > 1:
        draft.refuse("loss_type", "can only be one there; keep one")
    loss = losses[0] if losses else "kto"
    _put_loss(draft, loss, said)
    loss = str(draft.made.get("loss", loss)).partition(",")[0].partition(":")[0]
    for name in ("desirable_weight", "undesirable_weight"):
        if (weight := draft.take(name)) is not None:
            draft.put(f"{loss}.{name}", weight, draft.named(name))


def _cpo(draft: Draft) -> None:
    """CPO has no reference in any of its objectives, and adds cpo_alpha times the winner's likelihood to each."""
    said = _said(draft, "loss_type", "cpo_alpha", "simpo_gamma")
    (theirs, *others) = _names(draft) or ["sigmoid"]
    if others:
        draft.refuse("loss_type", "can only be one there; keep one")
    alpha, gamma = draft.number("cpo_alpha"), draft.number("simpo_gamma")
    alpha = Decimal(1) if alpha is None else alpha
    beta = as_number(draft.look("beta")) or Decimal("0.1")
    likelihood = f",sft:{plain(alpha)}" if alpha else ""
    if theirs == "sigmoid":
        _put_loss(draft, "cpo", said)
        draft.made.setdefault("cpo.alpha", plain(alpha))
        _add(draft, f"--cpo.alpha {plain(alpha)}", is_named=bool(said))
    elif theirs == "simpo":
        _put_loss(draft, f"simpo:1{likelihood}" if alpha else "simpo", said)
        draft.made.setdefault("simpo.gamma", plain(Decimal("0.5") if gamma is None else gamma))
        _add(draft, f"--simpo.gamma {draft.made['simpo.gamma']}", is_named=bool(said))
    else:  # max(0, 1 - beta z) = beta max(0, 1 / beta - z): slic without its own likelihood
        _put_loss(draft, f"slic:{plain(beta)}{likelihood}", said)
        draft.made |= {"slic.delta": str(float(1 / beta)), "slic.lam": "0"}
        _add(draft, f"--slic.delta {draft.made['slic.delta']} --slic.lam 0", is_named=True)
    for name, what in (("alpha", "rewards of AlphaPO"), ("label_smoothing", "smoothed labels")):
        if draft.number(name):
            draft.refuse(name, f"is not supported: CPO has no {what} here; remove it")


def _add(draft: Draft, flags: str, *, is_named: bool) -> None:
    """Says flags beside those of --loss: behind what the file names, or among its defaults."""
    if is_named:
        draft.said[-1] = draft.said[-1].removesuffix(" here") + f" {flags} here"
    else:
        draft.defaults.append(flags)


def _orpo(draft: Draft) -> None:
    said = _said(draft, "loss_type")
    _names(draft)
    _put_loss(draft, "orpo", said)
    draft.said.append("orpo: the likelihood is the response's here, where TRL's runs over prompt and response")
