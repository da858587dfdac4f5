"""What all scripts share.

Tensors of more than 32 MB would be given back to the kernel when they are freed, and cost a page fault for every 4 KB
when the next one is used. So PyTorch is asked for huge pages, before it makes its first tensor.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's, on Linux
