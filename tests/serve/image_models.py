"""A pass-through model that takes reference pictures, too."""

from lsd_jax.live.passthrough import PassThroughModel, PassThroughSession
from lsd_jax.runtime import InputFile, image_input, input


class Images(PassThroughSession):
    @input
    def set_image(self, image: InputFile = image_input()) -> None:
        image.image(8, 8)

    @input
    def clear_image(self) -> None: ...


class ImagesModel(PassThroughModel):
    name = "images"
    session_cls = Images
