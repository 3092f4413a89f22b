"""What the commands print about their results: tables and the sentences below them."""

import math
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from jaxtransfer.cli.console import print_line, print_table

if TYPE_CHECKING:
    from jaxtransfer.comparison.affinity import Affinity
    from jaxtransfer.data.datasets import LabelledTask
    from jaxtransfer.data.probe import Probe
    from jaxtransfer.demo import DemoResult
    from jaxtransfer.evaluation.oracle import Oracle
    from jaxtransfer.evaluation.retrieval import Quantity
    from jaxtransfer.evaluation.summary import Evaluations
    from jaxtransfer.runs.compare import Comparison
    from jaxtransfer.runs.gradient_results import GradientResults
    from jaxtransfer.training.transfers import Transfers

_SHOWN_DISAGREEMENTS = 8


def print_affinity(affinity: "Affinity", probe: "Probe", out: Path) -> None:
    """Prints the best source of every target, what was left out, and where the files are."""
    from jaxtransfer.comparison.affinity import counted_left_out
    from jaxtransfer.evaluation.rooms_scores import best_first, reason_for_first

    methods = best_first(affinity.methods)
    table = Table(title="Best source (value ± standard error)", title_justify="left")
    table.add_column("target")
    for method in methods:
        table.add_column(method)
    for target in affinity.targets:
        best = [affinity.rank(target, method=method)[0] for method in methods]
        table.add_row(target, *(f"{name}\n{value:.3f} ± {error:.3f}" for name, value, error in best))
    print_table(table)
    if reason := reason_for_first(methods):
        print_line(reason)
    _print_faults(affinity.faults)
    if affinity.left_out:
        total = len(affinity.names) + len(affinity.left_out)
        print_line(f"!! {counted_left_out(affinity.left_out, total)}: {', '.join(affinity.left_out)}.")
    print_line(f"{len(probe.names)} images were used and {len(probe.skipped)} files skipped.")
    _print_skipped(probe.skipped, out, before="  ", shown=5)
    if probe.copies:
        print_line(
            f"!! {probe.copies} of {len(probe.names)} images are copies of others, so errors are smaller and rankings "
            "look surer than they are; remove the copies."
        )
    _print_without_errors(affinity, affinity.methods)
    for method in affinity.methods:
        if affinity.unusable[method]:
            print_line(
                f"{len(affinity.unusable[method])} maps of {method} were zero or not finite and are left out "
                f"(listed in {out / 'run.json'})."
            )
    print_line(f"Matrices, heat maps and points are in {out}; `jaxtransfer rank {out} TARGET` prints a ranking.")


def print_scores(scores: "Affinity", tasks: "Sequence[LabelledTask]", out: Path) -> None:
    """Prints which network to start from for every task and how sure that is, what was left out, and the files."""
    from jaxtransfer.evaluation.confidence import certain_ranking
    from jaxtransfer.scores.measures import MEASURES

    first, *others = scores.methods
    types = {task.name: task.target_type for task in tasks}
    unpredicted = []
    table = Table(title="Which network to start from", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("task", "start from"):
        table.add_column(column)
    for column in (first, "sure", "more examples", *(["same choice"] if others else [])):
        table.add_column(column, justify="right")
    for task in scores.targets:
        ranked = certain_ranking(scores, task, method=first)
        if not ranked:
            reason = "no network has a score" if types[task] in MEASURES[first].target_types else "not for its labels"
            table.add_row(task, f"- ({first}: {reason})")
            continue
        best = ranked[0]
        if best.affinity <= 0:
            unpredicted.append(task)
        agreeing = [scores.rank(task, method=measure)[:1] for measure in others]
        known = [row[0][0] for row in agreeing if row]
        table.add_row(
            task,
            best.name,
            f"{best.affinity:z.3f} ± {best.stderr:.3f}",
            "" if best.above_next is None else f"{best.above_next:.0%}",
            "" if best.more_images is None else str(best.more_images),
            *([f"{known.count(best.name)} of {len(known)}"] if others else []),
        )
    print_table(table)
    print_line(
        '"sure": probability that the network truly scores above the next one. "more examples": about how many more '
        "labelled examples would raise it to 95 %."
    )
    if others:
        print_line(f'"same choice": other measures ({", ".join(others)}) that rank the network first.')
    if first == "ridge" and unpredicted:
        print_line(f"No network predicts the labels better than their mean: {', '.join(unpredicted)}.")
    _print_unused(tasks, out)
    print_line(
        f"Scores and heat maps are in {out}; `jaxtransfer rank {out} TASK` prints a ranking, and `jaxtransfer transfer "
        f"ZOO TASKS --scores {out} --top 3 --out DIRECTORY` measures the best three."
    )


def _print_unused(tasks: "Sequence[LabelledTask]", out: Path) -> None:
    """Prints what of each task was not used, and copies among its images."""
    from jaxtransfer.scores.target import Target

    for task in tasks:
        if task.missing:
            print_line(f"{task.name}: {task.missing} labels are missing.")
        if task.unlabelled:
            print_line(f"{task.name}: {task.unlabelled} images have no label and were not used.")
        if task.copies and task.groups is None:
            print_line(
                f"{task.name}: {task.copies} of {len(task.images)} images are copies of others, so values look better "
                "and surer than they are; remove them, or name groups of images."
            )
        if left_out := [name for name, _ in Target.of(task).left_out]:
            why = "are classes of one example or group" if task.target_type == "classes" else "do not vary"
            print_line(f"{task.name}: labels left out, since they {why}: {', '.join(left_out)}.")
        _print_skipped(task.skipped, out, before=f"{task.name}: ", shown=3)


def print_rankings(affinity: "Affinity", target: str, methods: Sequence[str], top: int | None) -> None:
    """Prints the sources of a target in the order of each method, with how sure the order is."""
    from jaxtransfer.evaluation.confidence import certain_ranking
    from jaxtransfer.evaluation.rooms_scores import best_first, reason_for_first

    methods = best_first(methods)
    for method in methods:
        measure = affinity.measure(method)
        digits = (".4g", ".2g") if measure.smaller_is_nearer else (".4f", ".4f")  # distances have no upper bound
        nearer = f" ({measure.direction})" if measure.smaller_is_nearer else ""
        table = Table(title=f"Sources for {target} by {method}{nearer}", title_justify="left")
        table.add_column("source")
        for column in (measure.name, "standard error", "above next", f"more {measure.sampled}"):
            table.add_column(column, justify="right")
        for source, value, error, above, more in certain_ranking(affinity, target, method=method)[:top]:
            confidence = ["" if above is None else f"{above:.0%}", "" if more is None else str(more)]
            table.add_row(source, f"{value:{digits[0]}}", f"{error:{digits[1]}}", *confidence)
        print_table(table)
    _print_faults(affinity.faults)
    _print_without_errors(affinity, methods)
    sampled = " or ".join(dict.fromkeys(f'"more {affinity.measure(method).sampled}"' for method in methods))
    print_line(
        f'"above next": probability that this source truly ranks above the next one. {sampled}: about how many more '
        "would raise it to 95 %."
    )
    if reason := reason_for_first(methods):
        print_line(reason)


def _print_without_errors(affinity: "Affinity", methods: Sequence[str]) -> None:
    """Says so where values come from one image, and have no error."""
    if any(affinity.measure(method).sampled == "images" and affinity.counts(method).max() == 1 for method in methods):
        print_line(
            "!! Values from one image have no error, so nobody knows how sure these rankings are; take more images."
        )


def print_transfers(
    transfers: "Transfers", tasks: Sequence["LabelledTask"], networks: Collection[str], out: Path
) -> None:
    """Prints for each task the sources by measured transfer, and the one of the networks to take."""
    from jaxtransfer.evaluation.confidence import certain_ranking
    from jaxtransfer.training.metrics import METRICS

    for task in tasks:
        first, *others = METRICS[task.target_type]
        table = Table(title=f"Measured transfer to {task.name}", title_justify="left")
        table.add_column("source")
        for metric in (first, *others):
            measure = transfers.measure(metric)
            table.add_column(f"{measure.name}{' (smaller is better)' * measure.smaller_is_nearer}", justify="right")
        table.add_column("above next", justify="right")
        if not (ranking := certain_ranking(transfers, task.name, method=first)):
            print_line(f"For {task.name}, no source has a result.")
            continue
        cells = {
            metric: {
                name: f"{value:.3f} ± {error:.3f}" for name, value, error in transfers.rank(task.name, method=metric)
            }
            for metric in (first, *others)
        }
        for source in ranking:
            row = [cells[metric].get(source.name, "") for metric in (first, *others)]
            table.add_row(source.name, *row, "" if source.above_next is None else f"{source.above_next:.0%}")
        print_table(table)
        quantity = transfers.measure(first).name
        place = next((i for i, source in enumerate(ranking) if source.name in networks), None)
        if place is None:
            print_line(f"For {task.name}, no fold has labels that give a value of {quantity}.")
            continue
        best, *rest = ranking[place:]
        sentence = f"For {task.name}, take {best.name}: its {quantity} is {best.affinity:.3f}"
        if rest:
            sure = "" if best.above_next is None else f", which is certain to {best.above_next:.0%}"
            sentence += f", measured {best.affinity - rest[0].affinity:.3f} better than that of {rest[0].name}{sure}"
        if place:
            sentence += (
                f". But {ranking[0].name}, which needs no network, was measured better: {ranking[0].affinity:.3f}"
            )
        print_line(f"{sentence}.")
    _print_unused(tasks, out)
    print_line(
        "Errors are those of the mean over folds. The tables are in "
        f"{out}; measured_<metric>.csv there is an oracle for `jaxtransfer evaluate`."
    )


def print_evaluation(evaluations: "Evaluations", oracle: "Oracle", run: Path) -> None:
    """Prints precision, recall and mean rank correlations beside those of the references, and what was scored."""
    from jaxtransfer.evaluation.references import REVERSE, SECOND, STATIC
    from jaxtransfer.evaluation.summary import score_table

    curves = [evaluation.curve for evaluation in evaluations.by_method.values()]
    columns: list[tuple[Quantity, int]] = [("precision", 1), ("precision", 5), ("recall", 10)]
    scores = score_table(evaluations, columns, ["spearman", "kendall"], band="\n{:.2f}-{:.2f}")
    table = Table(title=f"Against {oracle.name}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", min_width=min(max(map(len, evaluations.by_method)), 20))
    for column in (*scores.header, "Spearman", "Kendall"):
        table.add_column(column, justify="right")
    for method, cells in scores.rows.items():
        table.add_row(method, *cells)
    table.add_section()
    for name, cells in scores.references.items():
        table.add_row(name, *cells)
    print_table(table)
    print_line(
        "P@K: share of the K nearest sources that are relevant. R@K: share of the relevant sources that are among the "
        "K nearest. Spearman, Kendall: rank correlations, averaged over targets."
    )
    if any(evaluation.bands.networks is not None for evaluation in evaluations.by_method.values()):
        sampled = next(iter(evaluations.by_method.values())).bands.sampled
        print_line(f"Below each share: its 95 % band over other networks and {sampled} like these.")
    print_line("The last rows need no network:")
    explanations = {
        STATIC: "one list of sources for all targets, from their transfer to the other targets.",
        REVERSE: "from the measured transfer from target to source.",
        SECOND: "what the oracle itself would score if it were measured again, given its standard errors.",
    }
    for name in evaluations.references:
        print_line(f"  {name}: {explanations[name]}")
    if curves[0].random_hits[0] == curves[0].seen[0]:
        print_line("Every source counts as relevant, so any order is perfect; use a smaller --relevant.")
    missing = [target for target in oracle.scores if target not in map(oracle.own_name, curves[0].targets)]
    print_line(f"{len(curves[0].targets)} of the oracle's {len(oracle.scores)} targets were scored.")
    if missing:
        print_line(
            f"  not scored, because they or all but one of their sources are not in this run: {', '.join(missing)}"
        )
    print_line(f"Curves and the correlations of every target are in {run} (evaluation.csv, .png and _by_target.csv).")


def print_comparison(comparison: "Comparison") -> None:
    """Prints how far the rankings of several runs agree, and where they disagree."""
    table = Table(title=f"Agreement over {comparison.extent}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("first", "second"):
        table.add_column(column)
    tested = comparison.targets == comparison.sources
    for column in ("rankings", "matrices", *(["p"] if tested else [])):
        table.add_column(column, justify="right")
    known = [item for item in comparison.agreements.items() if not math.isnan(item[1].rank_correlation)]
    by_agreement = sorted(known, key=lambda item: -item[1].rank_correlation)
    for (first, second), agreement in by_agreement:
        correlations = (agreement.rank_correlation, agreement.matrix_correlation)
        shown = [f"{value:z.3f}" for value in correlations]
        table.add_row(first, second, *shown, *([f"{agreement.p_value:.4f}"] if tested else []))
    print_table(table)
    print_line(
        '"rankings": mean Spearman correlation of the rankings of sources. "matrices": Pearson correlation of all '
        "pairs." + (' "p": share of relabelled matrices that correlate as much (Mantel test).' if tested else "")
    )
    table = Table(title="Largest disagreements about a source's rank", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("target", "source", "best rank", "worst rank"):
        table.add_column(column)
    for disagreement in comparison.disagreements[:_SHOWN_DISAGREEMENTS]:
        ranks = [
            (rank, label)
            for rank, label in zip(disagreement.places, comparison.labels, strict=True)
            if rank is not None
        ]
        extremes = [extreme(ranks, key=itemgetter(0)) for extreme in (min, max)]
        shown = [f"{rank} by {label}" for rank, label in extremes]
        table.add_row(disagreement.target, disagreement.source, *shown)
    print_table(table)


def print_gradient_results(results: "GradientResults", out: Path) -> None:
    """Prints the best sources of every target, the signal-to-noise, what was left out, and where the files are."""
    print_line(f"Best sources ({results.measure.name} ± standard error, {results.measure.direction})")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("target")
    places = ("first", "second", "third")[: len(results.names) - 1]
    for column in places:
        table.add_column(column)
    for column in ("restarts", "signal-to-noise"):
        table.add_column(column, justify="right")
    for target, row in zip(results.names, results.control, strict=True):
        best = [f"{name}\n{value:.3g} ± {error:.2g}" for name, value, error in results.rank(target)]
        shown = [*best, *[""] * len(places)][: len(places)]
        table.add_row(target, *shown, str(row["restarts"]), f"{row['signal_to_noise']:.3g}")
    print_table(table)
    for sentence in results.remarks:
        print_line(sentence)
    for task in results.tasks:
        _print_skipped(task.skipped, out, before=f"{task.name}: ", shown=3)
        if task.left_out:
            small = ", ".join(f"{name} ({count})" for name, count in task.left_out[:5])
            more = ", ..." if len(task.left_out) > 5 else ""
            classes = "1 class was" if len(task.left_out) == 1 else f"{len(task.left_out)} classes were"
            print_line(f"{task.name}: {classes} left out for having too few images: {small}{more}")
    print_line(f"Matrices, ranking, control and heat map are in {out}.")


def print_demo(result: "DemoResult") -> None:
    """Prints which source to take for every task, how sure that is, how good it was, and the conclusions."""
    from jaxtransfer.demo import METHOD, sentences

    table = Table(
        title=f"Which network to start from, by {METHOD} on {result.images} images",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for column in ("target", "start from", "sure", "place", "best"):
        table.add_column(column, justify="right" if column in ("sure", "place") else "left")
    for choice in result.choices:
        table.add_row(choice.target, choice.source, choice.sure, str(choice.place), choice.best)
    print_table(table)
    sources = len(result.choices) - 1
    print_line(f'"sure": to rank above the next source. "place": in measured transfer, of {sources}.')
    for sentence in sentences(result):
        print_line(sentence)


def _print_skipped(skipped: Sequence[tuple[str, str]], out: Path, *, before: str, shown: int) -> None:
    """Prints the name and reason of the first skipped files, each line with `before` in front."""
    for name, reason in skipped[:shown]:
        print_line(f"{before}skipped {name}: {reason}")
    if len(skipped) > shown:
        print_line(f"{before}and {len(skipped) - shown} more, all listed in {out / 'run.json'}")


def _print_faults(faults: "Mapping[str, Sequence[str]]") -> None:
    """Prints a marked line for each fault, with the networks that have it."""
    from jaxtransfer.attribution.diagnostics import in_sentences

    for sentence in in_sentences(faults):
        print_line(f"!! {sentence}")
