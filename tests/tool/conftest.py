import signal

# Ctrl-C is heard by the programs under test, whoever started the tests: what runs in a shell's background
# inherits it ignored. A handler here is the default again in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
