"""Entry point of ``alignlab VERB …``. Every other module of this package is a verb, with ``main(words) -> exit code``.

Exit codes: 0 success; 2 wrong input (with one paragraph on standard error); 1 the run could not continue (with one
paragraph), or any other error (with a traceback); 143 stopped by SIGTERM and 130 by Ctrl-C, after a checkpoint if
training had begun.
"""

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import alignlab
from alignlab import cli
from alignlab.errors import InputError, RunError, nearest
from alignlab.system.credentials import masked
from alignlab.system.processes import leaving_on_signals

MODULES = [module.name for module in pkgutil.iter_modules(cli.__path__) if not module.ispkg]
VERBS = sorted(name for name in MODULES if name != "main")


COMPLETION = "Completion in bash: source <(alignlab --completion)"


def main(words: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        words: The command line after ``alignlab``; by default that of the process.

    Returns:
        Exit code.
    """
    with leaving_on_signals():
        return _run(list(sys.argv[1:] if words is None else words))


def _run(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"alignlab {alignlab.__version__}")
        return 0
    if words == ["--completion"]:
        from alignlab.cli.composition.completion import script
        from alignlab.cli.composition.compose import ROOT

        print(script(ROOT / "conf", VERBS), end="")
        return 0
    from alignlab.cli.composition.command import refuse

    try:
        if not words or words[0] in ("-h", "--help"):
            print(_help())
            return 0
        if words[0] not in VERBS:
            raise InputError(f"alignlab {words[0]}", "there is no such verb", nearest(words[0], VERBS))
        return importlib.import_module(f"alignlab.cli.{words[0]}").main(words[1:])
    except InputError as error:
        return refuse(error, debug="debug=true" in words)
    except RunError as error:
        if "debug=true" in words:
            raise
        print(f"Failed. {masked(str(error))}", file=sys.stderr)
        return 1


def _help() -> str:
    purposes = {verb: importlib.import_module(f"alignlab.cli.{verb}").__doc__.splitlines()[0] for verb in VERBS}
    lines = [f"  alignlab {verb:<9} {purpose}" for verb, purpose in purposes.items()]
    return "\n".join(
        ["alignlab VERB [group=option] [key=value]", "", *lines, "", "More: alignlab VERB --help", COMPLETION]
    )


if __name__ == "__main__":
    sys.exit(main())
