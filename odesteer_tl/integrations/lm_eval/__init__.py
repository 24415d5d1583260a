"""lm-evaluation-harness: importing this registers the model `odesteer` (`pip install 'odesteer_tl[lm-eval]'`).

lm-eval finds no models by entry points, so one of these imports it:

    odesteer-tl lm-eval --model odesteer --model_args pretrained=NAME,method=FOLDER,kl=0.5 --tasks …    # lm-eval's own

    import lm_eval
    import odesteer_tl.integrations.lm_eval
    lm_eval.simple_evaluate(model="odesteer", model_args={"pretrained": model, "method": method}, tasks=[…])
"""

from odesteer_tl.integrations.lm_eval.model import ODESteerLM

__all__ = ["ODESteerLM"]
