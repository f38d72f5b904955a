"""
Behind a web service
====================

The exported file needs neither skmrr nor torch: here it stands behind onnxruntime in an ASGI app
that any server of that kind can run, such as uvicorn (``uvicorn serve:app``). An image comes as the
bytes of a NumPy file. What cannot be read is the sender's error, and touches nobody else. It needs
``pip install "skmrr[onnx]" starlette httpx2``.
"""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from torch import nn

import skmrr
from skmrr.datasets import load_digits_images

# %%
# Fit, calibrate, export: once, where torch is
# --------------------------------------------

X, y = load_digits_images()
torch.manual_seed(0)
classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
for _ in range(200):
    optimizer.zero_grad()
    nn.functional.cross_entropy(
        classifier(torch.as_tensor(X[:700])), torch.as_tensor(y[:700])
    ).backward()
    optimizer.step()
detector = skmrr.MRREnsemble(classifier, clip_values=(0, 1), random_state=0).fit(X[700:], y[700:])
folder = TemporaryDirectory()
path = Path(folder.name) / "detector.onnx"
agreement = skmrr.export(detector, path, X[:200])
print(f"{agreement.n_rows} rows judged alike, risks within {agreement.risk_difference:.0e}")

# %%
# Serve
# -----

session = onnxruntime.InferenceSession(path)
names = [output.name for output in session.get_outputs()]
SHAPE = X.shape[1:]


async def judge(request: Request) -> JSONResponse:
    try:
        image = np.load(io.BytesIO(await request.body()), allow_pickle=False)
        x = image.astype(np.float32).reshape(1, *SHAPE)
        rate = float(request.query_params.get("security_parameter", 0.01))
    except (ValueError, OSError, EOFError) as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    given = {"x": x, "security_parameter": np.array(rate)}
    found = await run_in_threadpool(session.run, None, given)  # others are heard meanwhile
    return JSONResponse({name: part[0].tolist() for name, part in zip(names, found, strict=True)})


app = Starlette(routes=[Route("/judge", judge, methods=["POST"])])

# %%
# Ask
# ---


def sent(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, image)
    return buffer.getvalue()


client = TestClient(app)
for name, image in (("digit", X[0]), ("noise", np.random.default_rng(0).random(SHAPE))):
    print(name, client.post("/judge?security_parameter=0.05", content=sent(image)).json())
print("too bright", client.post("/judge", content=sent(9 * X[0])).json())
refused = client.post("/judge", content=b"no image")
print("no image", refused.status_code, refused.json()["error"][:60])
