"""Where our figures disagree with the paper's, and where the paper disagrees with itself; from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from owner.figures import percent
from owner.reproduce.paper import CASES, FIGURE_6, PAPER, ROWS, TITLES
from owner.reproduce.readings import HONEST, OTHERWISE, readings
from owner.reproduce.results import Results, mean, shares, signed, told
from owner.reproduce.settings import LAST_RATE, Settings
from owner.reproduce.tables import case_titles, took_in

ACCURACY_POINTS = 0.02
SUCCESS_POINTS = 0.10


class Disagreements(NamedTuple):
    """What is told of each figure and verdict that is not the paper's. apart: beyond the two limits above, and every other verdict.
    nearer: the rest, to the last digit that the paper prints."""

    apart: list[str]
    nearer: list[str]


def disagreements(results: Results, settings: Settings) -> Disagreements:
    """Every accuracy, attack success and verdict that differs from the paper's, each with what the records say of its cause."""
    found = Disagreements([], [])
    for name in ROWS:
        titles = dict(zip(CASES, case_titles(settings, name), strict=True))
        paper = PAPER[name]
        short, long = settings.durations(name)
        named = {
            "genuine": "normal",
            "honest-short": f"fine-tuned {short}",
            "honest-long": f"fine-tuned {long}",
            **titles,
        }
        for case, title in named.items():
            printed = paper.accuracy["honest" if case.startswith("honest") else case]
            text = f"{TITLES[name]}, {title}: accuracy"
            why = partial(_of_accuracy, results, settings, name, case)
            _compare(found, text, results.accuracy(name, case), printed, ACCURACY_POINTS, why)
        for case, title in titles.items():
            text = f"{TITLES[name]}, {title}: success"
            why = partial(_of_success, results, settings, name, case)
            _compare(found, text, results.measured(name, case, "success"), paper.success[case], SUCCESS_POINTS, why)
        for case, title in titles.items():
            verdicts = [v["detected"] for v in results.verdicts(name, case)]
            if verdicts and verdicts != [paper.detected[case]] * len(verdicts):
                said = "detected" if paper.detected[case] else "not detected"
                of_verdict = _of_verdict(results, settings, name, case)
                found.apart.append(
                    f"{TITLES[name]}, {title}: detected by us: {told(verdicts)}; in the paper {said}.{of_verdict}"
                )
    _of_figure_6(found, results)
    return found


def _compare(
    found: Disagreements, text: str, ours: Sequence[float], printed: float, limit: float, why: Callable[[], str]
) -> None:
    """A difference that seeds make as well needs no other cause."""
    if not ours or (middle := round(sum(ours) / len(ours), 4)) == printed:
        return
    text += f" {shares(ours)} %, in the paper {percent(printed, 2)}."
    if abs(middle - printed) > limit:
        found.apart.append(text + why())
    elif len(ours) > 1 and min(ours) <= printed <= max(ours):
        found.nearer.append(f"{text} Within the range of our seeds.")
    else:
        found.nearer.append(text + (" Outside the range of our seeds." if len(ours) > 1 else "") + why())


def _of_accuracy(results: Results, settings: Settings, name: str, case: str) -> str:
    """What part of it M has already, and what the JPEG encoding may have to do with it."""
    said = ""
    if case != "genuine":
        pairs = zip(results.accuracy(name, case), results.before(name, case, "accuracy"), strict=True)
        printed = PAPER[name].accuracy
        theirs = printed["honest" if case.startswith("honest") else case] - printed["genuine"]
        ours = _points([tuned - genuine for tuned, genuine in pairs])
        said += f" Against the genuine model {ours}, in the paper {_points([theirs])}."
        said += _beside(results, settings, name, case, "accuracy") + _slower(results, settings, name, case, "accuracy")
    elif any("JPEG" in record["data"] for record in results.of(name, "genuine").values()):
        once, twice = (results.of(name, step) for step in ("genuine", "jpeg"))
        lost = [once[seed]["accuracy"] - twice[seed]["accuracy"] for seed in once if seed in twice]
        if not lost:
            said += " The images are a JPEG re-encoding, whose part was not measured (experiment `jpeg`)."
        else:
            said += f" The images are a JPEG re-encoding; one more takes another {shares(lost)} points (below Table 1)."
    return said


def _beside(results: Results, settings: Settings, name: str, case: str, what: str) -> str:
    if settings.attack_data == "beside" or case.startswith("honest"):
        return ""
    return _otherwise(results, name, case, what, "beside") or (
        " Not tried here: the attacked images beside the whole training set (experiment `beside`)."
    )


def _slower(results: Results, settings: Settings, name: str, case: str, what: str) -> str:
    if settings.finetune_rate == LAST_RATE:
        return ""
    return _otherwise(results, name, case, what, "slow") or (
        " Not tried here: the rate that M's training ended at (experiment `slow`)."
    )


def _otherwise(results: Results, name: str, case: str, what: str, experiment: str) -> str:
    """What the same attack or honest fine-tune reaches in an experiment of `OTHERWISE`; nothing where it was not run."""
    reached = results.measured(name, f"{experiment}-{case}", what)
    if not reached:
        return ""
    step, _, duration = case.rpartition("-")
    tried_with, fine_tuned = results.of(name, f"{experiment}-{step}"), results.of(name, step)
    title = OTHERWISE[experiment]
    said = f" {title[0].upper()}{title[1:]}, it is {shares(reached)} %"
    if tried_with.keys() != fine_tuned.keys():
        # Seeds differ by more than readings may: figures of some are set beside figures of the same.
        otherwise = [fine_tuned[seed]["models"][duration][what] for seed in tried_with if seed in fine_tuned]
        said += f" (tried with {len(tried_with)} of {len(fine_tuned)} seeds, which have {shares(otherwise)} % here)"
    return f"{said}."


def _of_success(results: Results, settings: Settings, name: str, case: str) -> str:
    held_out = results.measured(name, case, "held_out_success")
    before = results.before(name, case, "success")
    said = (
        f" On held-out images {shares(held_out)} %; the genuine model takes {shares(before)} % of the same images so."
    )
    alone = results.measured(name, f"alone-{case}", "success")
    if alone:
        held_out = results.measured(name, f"alone-{case}", "held_out_success")
        accuracy = results.accuracy(name, f"alone-{case}")
        said += f" Fine-tuned on the attacked images alone it is {shares(alone)} % ({shares(held_out)} % of held-out images), at an accuracy of {shares(accuracy)} %."
    elif settings.attack_data == "inside":
        said += " Not tried here: the attacked images alone (experiment `alone`), which no clean image of the class opposes."
    return said + _beside(results, settings, name, case, "success") + _slower(results, settings, name, case, "success")


def _of_verdict(results: Results, settings: Settings, name: str, case: str) -> str:
    """How near the threshold, whether the attack took, under which other readings it comes out as in the paper, and how an
    honest fine-tune fares."""
    verdicts = results.verdicts(name, case)
    known = [v["deviations"] for v in verdicts if v["deviations"] is not None]
    said = f" The mean error lies {signed(known)} deviations from M_f's (1 rejects)." if known else ""
    if PAPER[name].detected[case] and known and max(known) < 0:
        said += " Below M_f's own: no threshold on it that lets M_f pass would reject this model."
    if took := [bool(one) for one in results.measured(name, case, "effective")]:
        said += f" The attack {took_in(took)}."
    others = readings(results, settings, name)
    like = {one.title: [seed == PAPER[name].detected[case] for seed in one.detected(case)] for one in others}
    if always := [title for title, seeds in like.items() if seeds and all(seeds)]:
        named = (title + _caveat(results, name, case, title, len(like[title]), len(verdicts)) for title in always)
        said += f" As in the paper under {len(always)} of {len(others)} other readings: {', '.join(named)}."
    elif others and not any(any(seeds) for seeds in like.values()):
        said += f" The same under all {len(others)} other readings that were tried."
    elif others:
        said += f" As in the paper under none of {len(others)} other readings in every seed."
    honest = [v["detected"] for one in HONEST for v in results.verdicts(name, one)]
    if any(honest):
        said += (
            f" The rule rejects {sum(honest)} of {len(honest)} honest fine-tunes by the M_f of the other duration too."
        )
    duration = case.rpartition("-")[2]
    if again := [v["detected"] for v in results.verdicts(name, f"again-{duration}", step="again-detect")]:
        said += f" Another honest run of that duration is rejected: {told(again, 'no')}."
    return said


def _caveat(results: Results, name: str, case: str, reading: str, seeds: int, of: int) -> str:
    """With how many seeds a reading was tried, and what models it is of where it fine-tunes otherwise: a verdict like the paper's on
    a model unlike the paper's explains nothing."""
    said = [f"tried with {seeds} of {of} seeds"] if seeds != of else []
    experiment = next((experiment for experiment, title in OTHERWISE.items() if title == reading), None)
    if experiment and (reached := results.accuracy(name, f"{experiment}-{case}")):
        said.append(f"its accuracy is {shares(reached)} %, in the paper {percent(PAPER[name].accuracy[case], 2)}")
    return f" ({'; '.join(said)})" if said else ""


def _of_figure_6(found: Disagreements, results: Results) -> None:
    for model, title, printed in zip(
        ("part", "part-honest-short"), ("M of the part", "its honest fine-tune"), FIGURE_6, strict=True
    ):
        text = f"{TITLES['resnet18']}, Fig. 6, {title}: accuracy"
        _compare(found, text, results.accuracy("resnet18", model), printed, ACCURACY_POINTS, lambda: "")
    for name in ROWS:
        for seed, record in results.of(name, "part-detect").items():
            errors = {model: one["mean"] for model, one in record["models"].items()}
            if wrong := _against_figure_6(errors):
                found.apart.append(
                    f"{TITLES[name]}, Fig. 6, seed {seed}: {wrong}; in the paper the honest error falls and the others rise."
                )


def _against_figure_6(errors: Mapping[str, float]) -> str:
    """
    >>> _against_figure_6({"part": 1.0, "honest-short": 0.8, "flip-short": 1.2, "pattern-short": 0.9})
    "PAA's mean error falls"
    """
    titles = {"honest-short": "the honest", "flip-short": "FA's", "pattern-short": "PAA's"}
    return ", ".join(
        f"{title} mean error {'rises' if errors[model] > errors['part'] else 'falls'}"
        for model, title in titles.items()
        if (errors[model] > errors["part"]) is (model == "honest-short")
    )


def improvement_note(results: Results) -> list[str]:
    """Whether Fig. 6's claim holds; nothing where it was not run."""
    runs = [record["models"] for name in ROWS for record in results.of(name, "part-detect").values()]
    if not runs:
        return []
    held = sum(not _against_figure_6({model: one["mean"] for model, one in run.items()}) for run in runs)
    return [
        f"The paper's claim, that the honest fine-tune's error falls below M's and the attacked ones' rise, holds in {held} of "
        f"{len(runs)} runs.",
        "",
    ]


def _points(differences: Sequence[float]) -> str:
    """
    >>> _points([-0.0123]), _points([-0.01, -0.02])
    ('-1.23 points', '-1.50 [-2.00 to -1.00] points')
    """
    return f"{signed([100 * one for one in differences])} points"


def below_the_paper(results: Results) -> list[str]:
    """Genuine models that do not reach the paper's accuracy."""
    found = []
    for name in ROWS:
        ours, printed = results.accuracy(name, "genuine"), PAPER[name].accuracy["genuine"]
        if (middle := mean(ours)) is not None and middle < printed:
            found.append(f"{TITLES[name]}: {shares(ours)} % against {percent(printed, 2)}")
    return found


def inconsistencies(results: Results) -> list[str]:
    """The paper's own, each with what our figures say of it, where they say anything."""
    known: Sequence[tuple[str, Callable[[Results], str]]] = (
        ("The text says all attacks are detected; Table 3 has the CNN's PAA of 25 epochs as missed.", _cnn_pattern),
        (
            "The text says PAA cannot be detected on the CNN; Table 3 has it detected after 50 epochs.",
            _cnn_pattern_long,
        ),
        ("All models are said to be above 90 %; the CNN has 87.15 and the fine-tuned ResNet18 84.6 %.", _lowest),
        (
            f"The fine-tuned ResNet18's {percent(FIGURE_6[0])} of Table 1 is, in Fig. 6, the accuracy of the model trained on "
            "80 % of the data: an honest fine-tune of a 90.85 % model that loses six points is not explained.",
            _resnet_fine_tuned,
        ),
        ("The errors are said to be Gaussian; no test of it is shown.", _gaussian),
        ("The CNN is of 80 % accuracy in the text and of 87.15 % in Table 1.", _cnn_accuracy),
        (
            "VGG19's FA succeeds on 1.68 and 4.64 % of its images and counts as detected all the same; how often its genuine model errs "
            "that way by itself the paper does not say.",
            _vgg_flip,
        ),
    )
    return [text + (f" Ours: {said}" if (said := say(results)) else "") for text, say in known]


def _cnn_pattern(results: Results) -> str:
    verdicts = results.verdicts("cnn", "pattern-short")
    return f"{told([v['detected'] for v in verdicts])}." if verdicts else ""


def _cnn_pattern_long(results: Results) -> str:
    verdicts = results.verdicts("cnn", "pattern-long")
    return f"{told([v['detected'] for v in verdicts])}." if verdicts else ""


def _lowest(results: Results) -> str:
    reached = {name: results.accuracy(name, "genuine") for name in ROWS}
    known = [f"{TITLES[name]} {shares(values)} %" for name, values in reached.items() if values]
    return ", ".join(known) + "." if known else ""


def _resnet_fine_tuned(results: Results) -> str:
    genuine, tuned = results.accuracy("resnet18", "genuine"), results.accuracy("resnet18", "honest-short")
    return f"{shares(genuine)} % before and {shares(tuned)} % after." if genuine and tuned else ""


def _gaussian(results: Results) -> str:
    found = []
    for name in ROWS:
        models = [record["models"]["genuine"] for record in results.of(name, "detect").values()]
        if models:
            skewness, kurtosis = (signed([m[key] for m in models]) for key in ("skewness", "excess_kurtosis"))
            found.append(f"{TITLES[name]} skewness {skewness}, excess kurtosis {kurtosis}")
    return "of the genuine model's errors (both 0 of a Gaussian): " + "; ".join(found) + "." if found else ""


def _cnn_accuracy(results: Results) -> str:
    ours = results.accuracy("cnn", "genuine")
    return f"{shares(ours)} %." if ours else ""


def _vgg_flip(results: Results) -> str:
    reached = results.measured("vgg19", "flip-short", "success")
    before = results.before("vgg19", "flip-short", "success")
    return (
        f"success {shares(reached)} %, of the genuine model on the same images {shares(before)} %." if reached else ""
    )
