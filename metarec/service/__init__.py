"""A trained model as a web service: ``metarec serve model.safetensors``.

Optional: ``pip install 'metarec[serve]'``.
"""

import importlib.util

_MISSING = [name for name in ("fastapi", "prometheus_client", "uvicorn") if importlib.util.find_spec(name) is None]
if _MISSING:
    raise ModuleNotFoundError(f"{', '.join(_MISSING)} not installed: pip install 'metarec[serve]'")

from metarec.service.app import create_app  # noqa: E402
from metarec.service.build import Build  # noqa: E402
from metarec.service.journal import Journal  # noqa: E402
from metarec.service.learner_process import learning  # noqa: E402
from metarec.service.limits import Limits  # noqa: E402
from metarec.service.server import serve  # noqa: E402
from metarec.service.workers import serve_workers  # noqa: E402

__all__ = ["Build", "Journal", "Limits", "create_app", "learning", "serve", "serve_workers"]
