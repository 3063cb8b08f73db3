"""Where our figures disagree with the paper's, and where the paper disagrees with itself; from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from owner.figures import percent
from owner.reproduce.paper import CASES, FIGURE_6, PAPER, ROWS, TITLES
from owner.reproduce.results import Results, mean, shares, told
from owner.reproduce.settings import Settings
from owner.reproduce.tables import case_titles

ACCURACY_POINTS = 0.02
SUCCESS_POINTS = 0.20


def disagreements(results: Results, settings: Settings) -> list[str]:
    """Accuracies that differ by more than 2 points, attack success by more than 20, verdicts that differ."""
    found = []
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
            ours = mean(results.accuracy(name, case))
            if ours is not None and abs(ours - printed) > ACCURACY_POINTS:
                found.append(
                    f"{TITLES[name]}, {title}: accuracy {percent(ours, 2)}, in the paper {percent(printed, 2)}."
                )
        for case, title in titles.items():
            ours = mean(results.measured(name, case, "success"))
            printed = paper.success[case]
            if ours is not None and abs(ours - printed) > SUCCESS_POINTS:
                found.append(
                    f"{TITLES[name]}, {title}: success {percent(ours, 2)}, in the paper {percent(printed, 2)}."
                )
        for case, title in titles.items():
            verdicts = [v["detected"] for v in results.verdicts(name, case)]
            if verdicts and verdicts != [paper.detected[case]] * len(verdicts):
                said = "detected" if paper.detected[case] else "not detected"
                found.append(f"{TITLES[name]}, {title}: detected by us: {told(verdicts)}; in the paper {said}.")
    return found


def below_the_paper(results: Results) -> list[str]:
    """Genuine models that do not reach the paper's accuracy."""
    found = []
    for name in ROWS:
        ours, printed = mean(results.accuracy(name, "genuine")), PAPER[name].accuracy["genuine"]
        if ours is not None and ours < printed:
            found.append(f"{TITLES[name]}: {percent(ours, 2)} against {percent(printed, 2)}")
    return found


def inconsistencies(results: Results, settings: Settings) -> list[str]:
    """The paper's own, each with what our figures say of it, where they say anything."""
    del settings
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
            "VGG19's FA succeeds on 1.68 and 4.64 % of its images, about as often as an honest model errs, and counts as "
            "detected all the same: what is detected there is fine-tuning, or nothing.",
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
    reached = {name: mean(results.accuracy(name, "genuine")) for name in ROWS}
    known = [f"{TITLES[name]} {percent(value, 2)}" for name, value in reached.items() if value is not None]
    return ", ".join(known) + "." if known else ""


def _resnet_fine_tuned(results: Results) -> str:
    genuine, tuned = results.accuracy("resnet18", "genuine"), results.accuracy("resnet18", "honest-short")
    return f"{shares(genuine)} % before and {shares(tuned)} % after." if genuine and tuned else ""


def _gaussian(results: Results) -> str:
    found = []
    for name in ROWS:
        models = [record["models"]["genuine"] for record in results.of(name, "detect").values()]
        if models:
            skewness, kurtosis = (mean([m[key] for m in models]) for key in ("skewness", "excess_kurtosis"))
            found.append(f"{TITLES[name]} skewness {skewness:.1f}, excess kurtosis {kurtosis:.1f}")
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
