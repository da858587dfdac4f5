from pathlib import Path
import hashlib, os, glob
def find_images(spec, data_root=None, what="--data"):
    out=[]
    for s in ([spec] if isinstance(spec,str) else spec):
        r=Path(data_root or os.environ.get("DBSN_DATA","datasets"))
        if s=="skimage_train" or s=="skimage_test":
            import skimage
            b=Path(skimage.__path__[0])/"data"
            n={"skimage_test":["camera.png","chelsea.png","coffee.png","rocket.jpg"],"skimage_train":"astronaut.png brick.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png retina.jpg clock_motion.png cell.png".split()}[s]
            out+=[b/x for x in n]
        elif (r/s).is_dir(): out+=sorted((r/s).glob("*.*"))
        elif Path(s).is_dir(): out+=sorted(Path(s).glob("*.*"))
        else: out+=[Path(x) for x in sorted(glob.glob(s))]
    return out
def content_hash(p): return hashlib.sha256(Path(p).read_bytes()).hexdigest()
