import numpy as np
from PIL import Image
def read_image(path, mode=None, white_level=None, **k):
    im = Image.open(path)
    a = np.asarray(im.convert({"gray":"L","color":"RGB"}[mode]) if mode else im)
    return a[..., None] if a.ndim == 2 else a
def image_header(path, **k):
    a = read_image(path); return (*a.shape, a.dtype)
def to_float(a): return a.astype(np.float32)/255 if a.dtype==np.uint8 else a
def write_image(path, image, bits=8):
    a = image if image.dtype==np.uint8 else np.rint(image.clip(0,1)*255).astype(np.uint8)
    Image.fromarray(a[...,0] if a.shape[2]==1 else a).save(path)
