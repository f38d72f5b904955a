"""The command ``skmrr``: defend a model of one's own, reproduce the tables, break the challenge."""

import dataclasses
import sys
from collections.abc import Callable
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

try:
    import typer
except ImportError as error:
    raise SystemExit("The command needs a few packages more: pip install 'skmrr[cli]'") from error

import joblib
import torch
from tqdm.auto import tqdm

from skmrr.cli import history
from skmrr.cli.in_use import export as export_detector
from skmrr.cli.in_use import score as score_rows
from skmrr.cli.own_model import calibrate, fit, init
from skmrr.cli.reporting import report as report_on_detector

app = typer.Typer(
    help="Detect adversarial inputs of your classifier; measure it, and try to break it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(
    help="Reproduce a table of the results, each by one command.", no_args_is_help=True
)
challenge = typer.Typer(help="Fixed defended classifiers to break.", no_args_is_help=True)
OF_OWN_MODEL: dict[str, Callable[..., None]] = {
    "init": init,
    "fit": fit,
    "calibrate": calibrate,
    "score": score_rows,
    "report": report_on_detector,
    "export": export_detector,
}
for own_name, own_command in OF_OWN_MODEL.items():
    app.command(own_name)(own_command)
app.add_typer(bench, name="bench")
app.add_typer(challenge, name="challenge")


class Dataset(str, Enum):
    """Problems to measure on."""

    digits = "digits"
    mnist = "mnist"
    cifar10 = "cifar10"
    imagenette = "imagenette"


DatasetOption = Annotated[
    Dataset, typer.Option(help="Images and victim; see docs/how_to/reproduce.md for their files.")
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Number of seeds: 1, 2, … ")]
PageOption = Annotated[
    Path | None, typer.Option(help="Where to write; by default results.md in the folder.")
]
OutputOption = Annotated[Path, typer.Option(help="Folder for tables, pictures and the cache.")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Everything small: to see that it runs, not for figures.")
]
AttackedOption = Annotated[
    int | None, typer.Option(min=1, help="Images that attacks on the victim start from.")
]
AdaptiveOption = Annotated[
    int | None, typer.Option(min=1, help="Images that attacks on victim and detector start from.")
]
EffortOption = Annotated[
    int, typer.Option(min=1, help="Times the steps of attacks on victim and detector.")
]
RestartsOption = Annotated[
    int, typer.Option(min=1, help="Starts of each attack on victim and detector, of peers.")
]
DetectorOption = Annotated[
    list[str] | None, typer.Option("--detector", help="Only this one; may be given again.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of torch; all cores by default.")
]
FolderArgument = Annotated[Path, typer.Argument(help="Folder to write into.")]
SubmissionArgument = Annotated[Path, typer.Argument(help="Submission, an .npz file.")]
NameOption = Annotated[
    str, typer.Option("--name", help="Which challenge; an unknown name lists those there are.")
]


def _run(
    measure: str,
    dataset,
    seeds,
    output,
    quick,
    attacked,
    adaptive,
    effort,
    restarts,
    detectors,
    threads,
):
    """Run one measurement and write its report."""
    from skmrr.bench import figures as figures_of
    from skmrr.bench import peers as peers_of
    from skmrr.bench import report, table1, table2, transferability
    from skmrr.bench.run import Run
    from skmrr.bench.sizes import QUICK, SIZES
    from skmrr.bench.systems import detectors_on

    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    name = dataset.value
    known = {"table2": ["N", *detectors_on(name)], "figures": []}.get(measure, detectors_on(name))
    unknown = sorted(set(detectors or ()) - set(known))
    if unknown:
        raise typer.BadParameter(
            f"{measure} of {name} has no detector {', '.join(unknown)}; "
            f"there {'are: ' + ', '.join(known) if known else 'is nothing to choose'}."
        )
    if effort > 1 and measure not in ("table2", "peers"):
        raise typer.BadParameter(f"No attack of {measure} knows the detector: leave out --effort.")
    if restarts > 1 and measure != "peers":
        raise typer.BadParameter(f"No attack of {measure} starts anew: leave out --restarts.")
    sizes = (QUICK if quick else SIZES[name]).with_effort(effort)
    changes = {"n_attacked": attacked, "n_adaptive": adaptive, "n_carlini": adaptive}
    sizes = dataclasses.replace(
        sizes,
        adaptive_restarts=restarts,
        **{key: value for key, value in changes.items() if value is not None},
    )
    measures = {
        "table1": table1.table1,
        "peers": peers_of.peers,
        "table2": table2.table2,
        "transfer": transferability.transfer,
        "figures": figures_of.figures,
    }
    output.mkdir(parents=True, exist_ok=True)
    memory = joblib.Memory(output / "cache", verbose=0)
    bar = tqdm(desc=measure, unit=" steps")

    def progress(text: str) -> None:
        bar.set_postfix_str(text)
        bar.update()

    numbers = tuple(range(1, seeds + 1))
    origin = report.provenance(typed(), list(numbers))
    with bar:
        outcome = measures[measure](Run(name, numbers, memory, sizes, detectors or None, progress))
    if effort > 1:
        outcome = dataclasses.replace(
            outcome,
            name=f"{outcome.name}-effort{effort}",
            title=f"{outcome.title}, {effort} times the steps",
        )
    if quick:
        outcome = dataclasses.replace(
            outcome, text=f"Quick: trained for a moment, to see that it runs.\n\n{outcome.text}"
        )
    home = report.write(outcome, output, origin)
    typer.echo((home / "report.md").read_text(encoding="utf-8"))
    typer.echo(f"written to {home}")


def typed() -> str:
    """Command as typed, but for the folder: that is its user's affair, and measures nothing."""
    words = sys.argv[1:]
    if "--output" in words:
        at = words.index("--output")
        words[at : at + 2] = []
    return history.typed([word for word in words if not word.startswith("--output=")])


def _command(measure: str, text: str):
    """Add a command that measures."""

    def command(
        dataset: DatasetOption = Dataset.digits,
        seeds: SeedsOption = 3,
        output: OutputOption = Path("results"),
        quick: QuickOption = False,
        attacked: AttackedOption = None,
        adaptive: AdaptiveOption = None,
        effort: EffortOption = 1,
        restarts: RestartsOption = 1,
        detectors: DetectorOption = None,
        threads: ThreadsOption = None,
    ) -> None:
        _run(
            *(measure, dataset, seeds, output, quick),
            *(attacked, adaptive, effort, restarts, detectors, threads),
        )

    bench.command(measure, help=text)(command)


_command("table1", "Attacks on the victim alone: AUC of each detector, by attack and strength.")
_command("table2", "Carlini-L2 that knows the detector: how much farther it has to go.")
_command("transfer", "Adversarials of each network, shown to the others and to the detectors.")
_command("peers", "All detectors: accuracy, hold against attackers who know them, cost.")
_command("figures", "Figures 4 and 5 of the paper that skmrr implements.")


@bench.command("results")
def results(
    output: OutputOption = Path("results"),
    page: PageOption = None,
) -> None:
    """Join all reports in the folder to one page of Markdown."""
    from skmrr.bench.findings import results_page

    page = output / "results.md" if page is None else page
    with _friendly():
        text = results_page(output, page.parent)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    typer.echo(f"written to {page}")


@challenge.command()
def info(name: NameOption = "digits") -> None:
    """Say what the rule is, which files it is about, and what no attack can exceed."""
    from skmrr.bench import challenge as published

    with _friendly():
        typer.echo(published.describe(name))


@challenge.command()
def export(folder: FolderArgument, name: NameOption = "digits") -> None:
    """Write the test images, an empty submission and a how-to into a folder."""
    from skmrr.bench import challenge as published

    with _friendly():
        published.export(folder, name)
    typer.echo(f"written to {folder}: put your images into submission.npz")


@challenge.command()
def score(file: SubmissionArgument, name: NameOption = "digits") -> None:
    """Judge a submission: how many images are misclassified and not flagged."""
    from skmrr.bench import challenge as published

    with _friendly():
        typer.echo(str(published.score(file, name)))


@challenge.command()
def build(folder: FolderArgument, name: NameOption = "digits") -> None:
    """Train by the recipe into a folder: a minute for digits, half an hour for MNIST.

    CIFAR-10 takes two hours, and goes on from where it was interrupted.
    """
    from skmrr.bench import challenge as published

    with _friendly():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / f"{name}-checkpoint.pt"
        detector = published.build(name, checkpoint=checkpoint, verbose=True)
        sums = published.save(detector, folder, name)
        checkpoint.unlink(missing_ok=True)
    typer.echo("SHA-256 of detector and victim:\n" + "\n".join(sums))
    typer.echo(f"written to {folder}; the published files stay the ones that count")


@contextmanager
def _friendly():
    """Turn what is wrong with a file or folder into a message."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def main() -> None:
    """Run the command."""
    app()
