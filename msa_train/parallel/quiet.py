"""Import Megatron-core without its warnings about optional GPU packages and its own deprecations."""

import warnings

warnings.filterwarnings("ignore", module=r"megatron\.")
