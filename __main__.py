"""``python -m flow_ttrl``."""

from .cli import main

raise SystemExit(main())
