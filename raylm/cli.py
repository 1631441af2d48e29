"""The `raylm` command: `raylm VERB [config.yaml ...] [key=value ...]`, one verb a job.

The same verbs run as Ray jobs through `python -m jobs.VERB`. Bad input prints one line and exits with code 2.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from raylm import __version__, config
from raylm.errors import EngineDied, UserError

USER_ERROR, ENGINE_DIED, INTERRUPTED = 2, 3, 130


@dataclass(frozen=True, slots=True)
class Verb:
    """A job: where its config class and its run function live. They are imported when the verb is used."""

    name: str
    summary: str
    config_path: str
    run_path: str
    word: str = ""
    """Key that the first argument gives when it is a plain word: `raylm serve reward`, `raylm sweep finetune`."""

    def config_class(self) -> type[config.Config]:
        return _load(self.config_path)

    def arguments(self, args: Sequence[str]) -> list[str]:
        """Arguments for `config.load`."""
        if self.word and args and not any(mark in args[0] for mark in "=./"):
            return [*args[1:], f"{self.word}={args[0]}"]
        return list(args)

    def load(self, args: Sequence[str]) -> config.Config:
        """The config of some arguments."""
        return config.load(self.config_class(), self.arguments(args))

    def run(self, resolved: config.Config) -> Any:
        return _load(self.run_path)(resolved)


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "pipeline",
            "Search, synthesise, fine-tune and evaluate, in one job.",
            "raylm.pipeline.config:PipelineConfig",
            "raylm.pipeline.run:run",
        ),
        Verb(
            "explore",
            "Search every problem's tree of reasoning steps.",
            "raylm.search.config:ExploreConfig",
            "raylm.search.explore:run",
        ),
        Verb(
            "synthesize",
            "Write training chains from the contrast between paths.",
            "raylm.crps.config:SynthesizeConfig",
            "raylm.crps.run:run",
        ),
        Verb(
            "finetune",
            "Fine-tune a model on chains, with evolving isolation.",
            "raylm.train.config:FinetuneConfig",
            "raylm.train.sft:run",
        ),
        Verb(
            "evaluate",
            "Score a model on suites of problems, with intervals.",
            "raylm.evaluation.config:EvaluateConfig",
            "raylm.evaluation.run:run",
        ),
        Verb(
            "diagnose",
            "Say which samples a tuned model has not learned, why, and plan the repair.",
            "raylm.ilp.config:DiagnoseConfig",
            "raylm.ilp.stage:run",
        ),
        Verb(
            "train-classifier",
            "Train a text classifier with hard or soft labels.",
            "raylm.classify.config:ClassifierConfig",
            "raylm.classify.stage:run",
        ),
        Verb(
            "serve",
            "Serve reward models and retrievers over HTTP.",
            "raylm.serve.config:ServeConfig",
            "raylm.serve.run:run",
            word="app",
        ),
        Verb(
            "index",
            "Encode a collection of documents and build its index.",
            "raylm.retrieval.index_config:IndexConfig",
            "raylm.retrieval.index_stage:run",
        ),
        Verb(
            "evaluate-retrieval",
            "Measure how an index or BM25 ranks documents for judged queries.",
            "raylm.retrieval.index_config:EvaluateRetrievalConfig",
            "raylm.retrieval.evaluate:run",
        ),
        Verb(
            "train-retriever",
            "Train a dense retriever on queries, documents and judgments.",
            "raylm.retrieval.config:RetrieverConfig",
            "raylm.retrieval.stage:run",
        ),
        Verb(
            "sweep",
            "Search the settings of a stage that trains: raylm sweep VERB config.yaml.",
            "raylm.sweep.config:SweepConfig",
            "raylm.sweep.run:run",
            word="stage",
        ),
        Verb(
            "train-reward",
            "Train a reward model of branches that says why.",
            "raylm.srm.config:RewardConfig",
            "raylm.srm.stage:run",
        ),
        Verb(
            "score",
            "Score responses with a reward model, with dimensions and attributions.",
            "raylm.srm.config:ScoreConfig",
            "raylm.srm.score:run",
        ),
        Verb(
            "diagnose-reward",
            "Find where a reward model errs, and which dimension is at fault.",
            "raylm.srm.config:DiagnoseConfig",
            "raylm.srm.diagnose:run",
        ),
    )
}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Post-training for language models on Ray. A job is: raylm VERB [config.yaml ...] [key=value ...]",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configs.")
tree_app = typer.Typer(no_args_is_help=True, help="Look at search trees.")
app.add_typer(config_app, name="config")
app.add_typer(tree_app, name="tree")
softlabels_app = typer.Typer(no_args_is_help=True, help="Look at soft labels.")
app.add_typer(softlabels_app, name="softlabels")


def run_verb(name: str, args: Sequence[str]) -> int:
    """Run one verb with its command-line arguments and return the exit code.

    Codes: 0 done, 2 bad input, 3 an engine that keeps dying, 130 interrupted. Other errors keep their traceback.
    """
    verb = VERBS[name]
    if "--help" in args or "-h" in args:
        print_help(verb)
        return 0
    return _guarded(lambda: verb.run(verb.load(args)))


def print_help(verb: Verb) -> None:
    """Print a verb's purpose and every config field with its type, default and meaning."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(f"raylm {verb.name} \\[config.yaml ...] \\[key=value ...]\n\n{verb.summary}\n")
    for key, kind, default, meaning in config.describe(verb.config_class()):
        shown = "required" if default == "required" else f"= {default}"
        console.print(f"[bold]{escape(key)}[/bold]  {escape(shown)}  [dim]{escape(kind)}[/dim]")
        console.print(Padding(escape(meaning), (0, 0, 0, 4)))


def main() -> None:
    """Entry point of the `raylm` command."""
    sys.exit(_guarded(lambda: app(standalone_mode=False)))


@config_app.command("show")
def config_show(
    verb: str,
    args: Annotated[list[str] | None, typer.Argument(metavar="[config.yaml ...] [key=value ...]")] = None,
) -> None:
    """Print the resolved config of VERB as YAML, and its hash."""
    if verb not in VERBS:
        raise UserError(f"config show: no verb {verb!r}; verbs are {', '.join(VERBS)}")
    resolved = VERBS[verb].load(args or ())
    typer.echo(f"# hash {config.config_hash(resolved)}")
    typer.echo(config.to_yaml(resolved), nl=False)


@tree_app.command("show")
def tree_show(path: str, id: Annotated[str, typer.Argument(help="Tree or problem id.")]) -> None:
    """Draw one tree of an explore artefact with its visits, values and verdicts."""
    _load("raylm.search.show:show")(path, id)


@softlabels_app.command("show")
def softlabels_show(
    args: Annotated[list[str] | None, typer.Argument(metavar="[config.yaml ...] [key=value ...]")] = None,
) -> None:
    """Print keywords and soft labels that a train-classifier config gives its texts."""
    verb = VERBS["train-classifier"]
    _load("raylm.classify.show:show")(config.load(verb.config_class(), args or ()))


@app.command("serve-token")
def serve_token(name: Annotated[str, typer.Argument(help="Who is to use it.")]) -> None:
    """Print a new bearer token for `raylm serve`, and the config entry of its key."""
    _load("raylm.serve.run:token")(name)


@app.command("search")
def search(
    path: str,
    query: str,
    args: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
) -> None:
    """Print the documents that an index finds for a query (k=10, mode=hybrid, dense or bm25, model=, letters=)."""
    from raylm.retrieval.index_config import SearchConfig

    _load("raylm.retrieval.show:search")(path, query, config.load(SearchConfig, args or ()))


@app.command("report")
def report(path: str) -> None:
    """Write the HTML report of a finished artefact again."""
    typer.echo(_load("raylm.report:for_artefact")(path))


@app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def submit(
    ctx: typer.Context,
    verb: Annotated[str, typer.Argument(help="Verb that the job runs; its arguments follow.")],
    *,
    address: Annotated[str, typer.Option(help="The cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS")] = (
        "http://127.0.0.1:8265"
    ),
    token_file: Annotated[str, typer.Option(help="File with the cluster's token; by default as Ray's clients.")] = "",
    working_dir: Annotated[str, typer.Option(help="Directory that travels to the cluster.")] = ".",
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the job; may be repeated.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job and return its exit code.")] = True,
) -> None:
    """Run VERB as a job on a Ray cluster: raylm submit VERB [config.yaml ...] [key=value ...] --address URL."""
    from raylm import submit as jobs

    request = jobs.Request(
        verb, tuple(ctx.args), address, token_file, working_dir, env=jobs.parse_env(env or []), wait=wait
    )
    raise typer.Exit(jobs.submit(request))


@app.command("version")
def version() -> None:
    """Print raylm's version."""
    typer.echo(__version__)


def _register(verb: Verb) -> None:
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(verb.name, help=verb.summary, context_settings=settings, add_help_option=False)
    def command(ctx: typer.Context) -> None:
        raise typer.Exit(run_verb(verb.name, ctx.args))


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _guarded(action: Callable[[], Any]) -> int:
    """Run `action`, turning errors that a user can mend into one line and an exit code."""
    try:
        result = action()
    except UserError as error:
        return _fail(str(error), USER_ERROR)
    except EngineDied as error:
        return _fail(str(error), ENGINE_DIED)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", INTERRUPTED)
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # the command line itself was wrong
            return _fail(error.format_message(), USER_ERROR)
        raise
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


for _verb in VERBS.values():
    _register(_verb)

if __name__ == "__main__":
    main()
