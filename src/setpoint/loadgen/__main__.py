"""`python -m setpoint.loadgen SPEC`: one worker process (see `worker`)."""

import sys

from setpoint.loadgen.worker import main

main(sys.argv[1])
