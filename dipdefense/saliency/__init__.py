"""Saliency maps: the gradient, integrated gradients, SmoothGrad and MIG-SG.

MIG-SG is that of Kattamis et al. 2019, appendix A.1. Each map tells how much every value of an image matters to the
score of one class, before the softmax. The four share these arguments:

- ``classifier``: any differentiable module from (N, C, H, W) images in [0, 1] to (N, classes) logits. It runs in eval
  mode. Afterwards its modes are as they were, and so are its parameters' gradients.
- ``images``: (N, C, H, W) floats in [0, 1]. A map depends on no other image of the batch.
- ``target``: the class of the score, one for all images or one per image; by default the predicted class.
- ``batch_size``: images that the classifier gets at once, which bounds the memory; it changes a map by rounding alone.

The maps have the images' shape, dtype and device, and no gradient of their own. They can be made under
``torch.no_grad()`` and ``torch.inference_mode()``. The noise of the random methods depends on ``seed`` alone and is the
same for every image; no global generator is touched.

All four raise TypeError or ValueError, before any gradient is taken, where an argument is not as described; and
ValueError where the score has no gradient with respect to the images.
"""

from dipdefense.saliency.masks import mask, overlay
from dipdefense.saliency.methods import gradient, integrated_gradients, mig_sg, smoothgrad

__all__ = ["gradient", "integrated_gradients", "mask", "mig_sg", "overlay", "smoothgrad"]
