"""The command line. One file per noun; each is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from gptflow import __version__
from gptflow.errors import GPTFlowError
from gptflow.suggestion import did_you_mean

# name: where the command is, and its line in `gptflow --help`, so that help imports nothing.
COMMANDS = {
    "run": ("run:run", "Run a task on one input and print the answer."),
    "submit": ("submit:submit", "Run a task on every row of a JSONL file."),
    "up": ("up:up", "Start Redis, a worker and the scheduler."),
    "worker": ("worker:worker", "Start a worker."),
    "beat": ("worker:beat", "Start the scheduler."),
    "jobs": ("jobs:jobs", "List, show, watch, cancel and retry jobs."),
    "dead": ("dead:dead", "Show, replay and purge jobs that killed their workers."),
    "schedule": ("schedule:schedule", "List schedules, run them by hand, let them rest."),
    "queue": ("queue:queue", "Show what waits, what runs and who works."),
    "monitor": ("monitor:monitor", "Watch feeds for surges of bad news."),
    "plugins": ("plugins:plugins", "List, show, write and check plugins."),
    "data": ("data:data", "Check, describe, split and convert data to train on."),
    "models": ("models:models", "Get models and list them."),
    "train": ("train:train", "Train an adapter for a task."),
    "eval": ("evaluate:evaluate", "Measure a task on rows, beside simple models."),
    "pretrain": ("pretrain:pretrain", "Train a model on raw text."),
    "tune": ("tune:tune", "Search for the settings that train best."),
    "runs": ("runs:runs", "List trainings, show, compare and draw them."),
    "feedback": ("feedback:feedback", "Collect corrected answers to train on."),
    "robustness": ("robustness:robustness", "Measure an adapter on misspelt texts."),
    "adapters": ("adapters:adapters", "List adapters, promote one, roll back."),
    "bench": ("bench:bench", "Measure speed."),
    "config": ("config:config", "Show the settings and where they come from."),
    "doctor": ("doctor:doctor", "Find out what is wrong with an installation."),
    "completion": ("completion:completion", "Print a shell's completion script."),
}

EPILOG = """\b
Examples:
  gptflow run text.chat "Name three colours." --local
  gptflow run sentiment.classify @examples --json
  gptflow submit sentiment.classify posts.jsonl --out moods.jsonl
  gptflow plugins new mood --head choose

\b
Exit codes:
  0 done                    6 model not found
  1 something else          7 a plugin is broken
  2 wrong usage             8 the job failed
  3 invalid input           9 some rows of a batch failed
  4 no such task, plugin   10 a setting is wrong
  5 Redis is unreachable   11 the queue is full
                           12 a job is not signed
130 interrupted            13 training failed, a gate was missed
"""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(
                importlib.import_module(f"gptflow.cli.{module}"), attribute
            )
            return command
        return self._plugin_commands().get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = did_you_mean(name, COMMANDS) or "`gptflow --help` lists them."
            raise click.UsageError(f"There is no command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def _plugin_commands(self) -> Mapping[str, click.Command]:
        from gptflow.plugins import default_registry

        group = click.Group()
        default_registry().add_commands(group)
        return group.commands


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gptflow")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file.  [default: gptflow.toml, where there is one]",
)
@click.option("--redis", "redis_url", metavar="URL", help="Redis or Valkey to use.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; errors come with a traceback.")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, redis_url: str | None, verbose: bool) -> None:
    """NLP applications on message queues, served by one resident GPT."""
    from gptflow.cli.session import Session

    ctx.obj = Session(config, redis_url=redis_url, verbose=verbose)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point: runs a command and turns errors into messages and exit codes."""
    verbose = bool({"-v", "--verbose"} & set(sys.argv[1:] if args is None else args))
    try:
        status: Any = cli.main(args, prog_name="gptflow", standalone_mode=False)
    except GPTFlowError as error:
        if verbose:
            traceback.print_exc()
        click.secho(f"error [{error.code}]: {error.message}", fg="red", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if verbose or error.filename is None:
            raise
        click.secho(f"error: {error.filename}: {error.strerror}", fg="red", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
