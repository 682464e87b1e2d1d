"""What executors of 2024 import from this module. For old code alone; new code imports the modules named below."""

from __future__ import annotations

from kuwa.executor.config_file import read_config
from kuwa.executor.function_options import DescriptionParser, expose_function_parameter, merge_config

__all__ = ["DescriptionParser", "expose_function_parameter", "merge_config", "read_config"]
