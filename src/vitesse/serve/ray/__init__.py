"""The server's app on several machines: Ray Serve starts, watches, scales and replaces the processes.

scale ──▶ deploying ──▶ proxy ──▶ replica: open_served → build_app, the same app as in one process
how many   on a cluster  Ray's     published: what it counts, to Ray's exporter
"""
