"""Which variant of the model answers, and the way back to the original when one misbehaves.

request ──▶ router ──▶ live, or the canary for its share ──▶ answer
              │           └ exception, NaN: this very request goes to the reference
              ├ sampler   some answers are compared with the reference: agreement, drift of the scores
              └ breaker   counts what went wrong; opens: the reference answers; probes, and closes again
state: RUN/serving.json, which survives a restart and is what `vitesse release` changes; golden: right on this machine?
"""
