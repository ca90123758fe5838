"""What the commands end with, so that a scheduler of jobs knows what to do next."""

DONE = 0
FAILED = 1  # a check failed, or some inputs could not be read: they are named
MISTAKE = 2  # the user has to change something, reported in one line
STOPPED = 75  # asked to stop (SIGTERM), and saved: the same command resumes; EX_TEMPFAIL
INTERRUPTED = 130  # Ctrl-C; where something can be resumed, it is saved as above
