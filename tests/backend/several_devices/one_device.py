"""What several devices should end with, on one."""

import sys

import runs

model = runs.make(optimizer=runs.clipped())
losses = runs.fit(model)
runs.write({"losses": losses, "state": runs.state(model).tolist()}, sys.argv[1])
