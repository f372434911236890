"""``python -m servetwin.profiles.neustream_artifact REFERENCE_DIR OUT_DIR``"""

from .restate import main

raise SystemExit(main())
