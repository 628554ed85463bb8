"""Many images at once, offline, on many processes: folders and Parquet files in, one line of JSON an image out.

sources ──▶ reading ──▶ sessions ──▶ lines
what there is  Parquet    on_ray: a model  appended as they come; an interrupted
to score       as rows    an actor         run goes on where it stopped
"""
