"""Several fits, one after the other, in the same processes: python -m ranks.fits '[["fit", ...], ...]'."""

import json
import sys

from worldmodel.cli import main

for argv in json.loads(sys.argv[1]):
    main(argv)
