"""Run by test_versions.py: imports torch and lmsd in the order of the arguments, samples torch tensors, and
shows that torch is in order.
"""

import importlib
import json
import logging
import sys

log = []
handler = logging.Handler()
handler.emit = lambda record: log.append(record.getMessage())
logging.getLogger("lmsd").addHandler(handler)
logging.getLogger("lmsd").setLevel(logging.INFO)

modules = {name: importlib.import_module(name) for name in sys.argv[1:]}
torch, lmsd = modules["torch"], modules["lmsd"]

torch.manual_seed(0)
schedule = lmsd.solve("dpmpp_2m", nfe=6)
errors = {}
for name in ("float32", "float64", "float16", "bfloat16"):
    dtype = getattr(torch, name)
    x = (torch.randn(2, 4, 8, 8, dtype=torch.float64) * 80).to(dtype)
    kept = x.clone()
    found = lmsd.sample(schedule, x, lambda x, sigma: x / (1 + sigma**2))
    exact = lmsd.sample(schedule, x.double().numpy(), lambda x, sigma: x / (1 + sigma**2))
    errors[name] = float((found.double() - torch.from_numpy(exact)).abs().max()) / float(abs(exact).max())
    assert found.dtype == dtype and torch.equal(x, kept)

weight = torch.randn(8, 4, 3, 3, requires_grad=True)  # torch itself: convolution, threads, gradients, errors
torch.nn.functional.conv2d(torch.randn(2, 4, 16, 16), weight).square().sum().backward()
assert weight.grad.isfinite().all()
try:
    torch.ones(2) @ torch.ones(3)
except RuntimeError as error:
    assert "size" in str(error)
else:
    raise AssertionError("torch's exceptions are gone")
print(json.dumps({"torch": torch.__version__, "log": log, "errors": errors}))
