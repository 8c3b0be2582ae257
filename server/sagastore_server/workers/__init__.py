"""Several processes on one port (`serve --workers N`): one supervising process, N workers.

The supervising process serves no calls. It reserves the port, starts the workers and replaces
those that end, answers on the ops port for all of them, writes their log, and drains them. A
worker is a server without an ops port, whose order to stop comes over the control channel.
"""
