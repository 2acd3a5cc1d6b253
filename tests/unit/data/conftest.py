from __future__ import annotations

import sys
from pathlib import Path

# The suite imports tests by path (importlib mode), which leaves the helper module beside them out of reach.
sys.path.insert(0, str(Path(__file__).parent))
