"""``python -m fisherkernels`` is the ``fisherkernels`` command."""

import sys

from fisherkernels.cli import main

sys.exit(main())
