"""The parser of commands that take options: it refuses in one sentence, without the usage."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from basis_search.errors import BadInput, near_miss


class SentenceParser(argparse.ArgumentParser):
    """Raises BadInput for wrong options, with the nearest known one."""

    def error(self, message: str) -> NoReturn:
        known = [option for option in self._option_string_actions if option.startswith("--")]
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        hint = near_miss(unknown.group(1), known) if unknown else f"; `{self.prog} --help` lists them all"
        raise BadInput(f"{message}{hint}")
