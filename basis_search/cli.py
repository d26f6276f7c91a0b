"""The command line `basis-search`: hydra parses overrides; bad input is refused in one sentence with exit status 2."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from basis_search.config import SCHEMAS, BenchConfig, DiscoverConfig, SearchConfig, TuneConfig, explained
from basis_search.errors import BadInput, near_miss
from basis_search.planning.budget import QUANTITIES
from basis_search.run.command_parser import SentenceParser

_PACKAGE = Path(__file__).resolve().parent
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")
"""The hydra configs: inside an installed package, next to the package in a checkout."""
SUITES = ("stl", "kronecker", "pq", "launch", "schemes", "search", "model")
USAGE = """usage: basis-search COMMAND ...

  search layers=DIR [key=value ...]  search the captured layers in DIR; -m 'worker=range(4)' starts
                                     four workers, experiment=NAME picks a preset of conf/experiment/
  watch RUN                          progress, plans, workers and failures of a running search
  report RUN [--against OTHER]       write an HTML page and plots of a run, or of two compared
  export RUN --flops 0.5 --out DIR   write the layers of a plan for one budget, from a finished run
  discover format=4x4x4 ring=Z2      search for exact schemes
  bench suite=NAME [part=NAME]       measured tables: stl, kronecker, pq, launch, schemes, search, model
  tune device=cuda                   measure block sizes of the GPU kernels, for all later calls
  kernels                            list the kernels that run on this machine
  storage-proxy                      optuna's gRPC proxy for a journal or a database

`basis-search COMMAND --help` lists a command's settings."""
HELP = {"--help", "-h", "--hydra-help", "--info", "-i", "--cfg", "-c", "--version"}
WITH_VALUE = ("--info", "-i", "--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--config-name", "-cn")
"""hydra's options that take a value of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 2 for bad input, or 130 after a second Ctrl-C."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = [argument for argument in rest if argument]
    commands: dict[str, Callable[[list[str]], None]] = {
        "search": _hydra_command("search", _search),
        "discover": _hydra_command("discover", _discover),
        "bench": _hydra_command("bench", _bench),
        "tune": _hydra_command("tune", _tune),
        "watch": _watch,
        "report": _report,
        "export": _export,
        "kernels": _kernels,
        "storage-proxy": _storage_proxy,
    }
    if command in ("", "-h", "--help"):
        print(USAGE)
        return 0 if command else 2
    if command == "--version":
        print(importlib.import_module("importlib.metadata").version("basis_search"))
        return 0
    try:
        if command not in commands:
            raise BadInput(f"there is no command {command!r}{near_miss(command, list(commands))}")
        commands[command](rest)
    except BadInput as problem:
        print(f"basis-search: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbasis-search: stopped; everything written so far is kept", file=sys.stderr)
        return 130
    return 0


def _hydra_command(name: str, run: Callable[[Any, str], None]) -> Callable[[list[str]], None]:
    """A command whose arguments are hydra overrides: checked first, then run once per hydra job."""

    def command(arguments: list[str]) -> None:
        store = ConfigStore.instance()
        store.store(name=f"{name}_schema", node=SCHEMAS[name])
        if name == "search" and not any(a.startswith("run=") for a in arguments):
            arguments = [*arguments, f"run=runs/{datetime.now():%Y-%m-%d_%H-%M-%S}"]
        arguments = [_adding(argument) for argument in arguments]
        wants_help = bool(HELP & set(arguments))
        _check_overrides(name, arguments, complete=not wants_help)
        if {"--help", "-h"} & set(arguments):
            print(inspect.getdoc(SCHEMAS[name]), end="\n\n")

        problems: list[BadInput] = []
        many = bool({"-m", "--multirun"} & set(arguments))

        def job(config: DictConfig) -> None:
            try:
                run(_typed(config), OmegaConf.to_yaml(config, resolve=True))
            except BadInput as problem:
                if many:  # another process may run it: hydra prints this exception without a traceback
                    raise CompactHydraException(str(problem)) from problem
                problems.append(problem)

        # Overrides last: argparse refuses them before an option, as in "layers=DIR -m worker=0".
        sys.argv = [f"basis-search {name}", *sorted(arguments, key=_is_override)]
        try:
            hydra.main(version_base="1.3", config_path=CONF, config_name=name)(job)()
        except SystemExit as ending:
            raise SystemExit(2 if ending.code == 1 else ending.code) from None
        if problems:
            raise problems[0]

    return command


def _adding(argument: str) -> str:
    """limits and budgets have keys that the user adds, which hydra marks by ++."""
    return re.sub(r"^(limits|budgets)(?=[.=])", r"++\1", argument)


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def _check_overrides(name: str, arguments: list[str], complete: bool = True) -> None:
    """Composes the config before hydra does, to refuse in our own words with status 2; checks values if `complete`."""
    overrides = [a for a in arguments if not a.startswith("-") and "=" in a]
    values = _values_of(arguments, *WITH_VALUE)
    stray = [a for a in arguments if not a.startswith("-") and not _is_override(a) and a not in values]
    config_dirs = _values_of(arguments, "--config-dir", "-cd")
    if stray:
        raise BadInput(f"{stray[0]!r} is no override; write key=value, such as layers=DIR")
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        single = [
            f"{o.get_key_element()}={next(iter(o.sweep_string_iterator()))}" if o.is_sweep_override() else o.input_line
            for o in parsed
        ]
        GlobalHydra.instance().clear()
        searchpath = [f"hydra.searchpath=[{','.join(f'file://{Path(d).resolve()}' for d in config_dirs)}]"]
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            config = _typed(hydra.compose(name, [*single, *(searchpath if config_dirs else [])]))
        if complete and name == "search":
            config.check()
    except OverrideParseException as problem:
        raise BadInput(
            f"{problem.override!r} cannot be read as key=value; quote values with special characters, as in "
            "'layers=\"a=b\"'"
        ) from problem
    except (HydraException, OmegaConfBaseException) as problem:
        raise BadInput(explained(problem, name)) from problem
    finally:
        GlobalHydra.instance().clear()


def _values_of(arguments: list[str], *flags: str) -> list[str]:
    pairs = itertools.pairwise(arguments)
    return [value for flag, value in pairs if flag in flags]


def _typed(config: DictConfig) -> Any:
    typed = OmegaConf.to_object(config)
    if isinstance(typed, dict):
        raise BadInput(
            "the config lost its schema; put search_schema first in the defaults list of a config of your own"
        )
    return typed


def _search(config: SearchConfig, text: str) -> None:
    from basis_search.run.search_run import run_search

    config.check()
    print(f"run folder: {run_search(config, text)}")


def _discover(config: DiscoverConfig, text: str) -> None:
    from basis_search.run import discover_run

    discover_run.run(config)


def _bench(config: BenchConfig, text: str) -> None:
    if not config.suite:
        raise BadInput(f"no suite is named; add suite=NAME, one of {', '.join(SUITES)}")
    if config.suite not in SUITES:
        raise BadInput(f"there is no suite {config.suite!r}{near_miss(config.suite, SUITES)}")
    from basis_search.bench.run_suite import run_suite

    run_suite(config)


def _tune(config: TuneConfig, text: str) -> None:
    from basis_search.bench.tune import tune

    print(tune(config))


def _watch(arguments: list[str]) -> None:
    parser = SentenceParser(
        "basis-search watch",
        description="Shows the progress of the search in a run folder; Ctrl-C does not stop the search.",
    )
    parser.add_argument("run", type=Path, help="the folder that a search writes, such as runs/latest")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two updates; 2 if not given"
    )
    parser.add_argument("--once", action="store_true", help="print the progress once and return")
    options = parser.parse_args(arguments)
    from basis_search.monitor import watch

    os.nice(10)  # a search on the same machine measures latencies
    with contextlib.suppress(KeyboardInterrupt):
        watch.watch(options.run, options.every, options.once)


def _report(arguments: list[str]) -> None:
    parser = SentenceParser("basis-search report", description="Writes an HTML page and plots into a run folder.")
    parser.add_argument("run", type=Path, help="the folder that a search wrote")
    parser.add_argument("--against", type=Path, metavar="RUN", help="another run's folder to compare it with")
    options = parser.parse_args(arguments)
    from basis_search import report

    print(report.write(options.run, options.against))


def _export(arguments: list[str]) -> None:
    parser = SentenceParser(
        "basis-search export",
        description="Plans for a budget from the fronts of a finished run and writes the chosen layers.",
    )
    parser.add_argument("run", type=Path, help="the folder that a search wrote")
    for quantity in QUANTITIES:
        more = "; the run's max_latency if not given, inf for any" if quantity == "latency" else ""
        parser.add_argument(
            f"--{quantity}", type=float, metavar="FRACTION", help=f"of the dense layers' {quantity}{more}"
        )
    parser.add_argument(
        "--group", action="append", default=[], metavar="PATTERN",
        help="layers that must share a spec, such as 're:(.*)\\.(?:query|key|value)'; by default the run's groups",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--layers", type=Path, help="the captured layers, if they were moved since the search")
    options = parser.parse_args(arguments)
    from basis_search.planning.plan import latency_cost
    from basis_search.run.finish import export_run

    budget = {q: v for q in QUANTITIES if (v := getattr(options, q)) is not None}
    plan = export_run(options.run, budget, options.out, options.layers, options.group)
    print(json.dumps(plan.ratios))
    if cost := latency_cost(plan):
        print(cost, file=sys.stderr)


def _storage_proxy(arguments: list[str]) -> None:
    from basis_search.study import optuna_storage
    from basis_search.workers.run_folder import RunFolder

    parser = SentenceParser(
        "basis-search storage-proxy",
        description="optuna's gRPC proxy in front of a storage; workers reach it by "
        f"{optuna_storage.ENVIRONMENT}=grpc://HOST:PORT. It asks for no password: use it in trusted networks only.",
    )
    parser.add_argument("--storage", help=f"a journal file; a URL is read from {optuna_storage.ENVIRONMENT} only")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=13000, help="0 for a free one")
    options = parser.parse_args(arguments)
    location = optuna_storage.resolve(options.storage, RunFolder(".").studies_file)
    optuna_storage.serve(location, options.host, options.port, lambda url: print(f"proxy at {url}", flush=True))


def _kernels(arguments: list[str]) -> None:
    parser = SentenceParser(
        "basis-search kernels",
        description="Lists the kernels of each family and, for those that do not run here, the reason.",
    )
    parser.parse_args(arguments)
    from basis_search.run.kernel_list import kernel_list

    print("\n".join(kernel_list()))


if __name__ == "__main__":
    sys.exit(main())
