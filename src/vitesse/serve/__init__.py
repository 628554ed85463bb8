"""A finished run behind HTTP: batching, several sessions, monitoring, releases that roll back by themselves.

bytes ──▶ protocol/ · images ──▶ routing ──▶ pool ──▶ session ──▶ answers ──▶ bytes
          what was asked          releases/    batching, one worker a session
                                  which variant answers
"""
