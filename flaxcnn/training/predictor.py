"""Images to answers: a network with its variables, its preprocessing and its classes."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxcnn.data.augment import View, viewed_shape
from flaxcnn.data.images import probe_image
from flaxcnn.errors import UserError
from flaxcnn.models import fold_batch_norm
from flaxcnn.tasks.task import Task
from flaxcnn.training.step import make_forward, make_preprocess
from flaxcnn.weights.preprocessing import Preprocessing, check_range


class Predictor:
    """A network as a function of images: uint8 [N, H, W, C] -> the task's answers, [N, ...].

    Of classification these are probabilities, float32 [N, classes]. Images are of
    `preprocessing.image_size`, as `read` gives files; floats in 0..1 will do. Any number of them:
    they are computed up to `batch_size` at a time, padded to a power of two, and each such size is
    compiled once. Several threads may call it. BatchNorm is folded, which moves answers by no more
    than float32's rounding.

    Attributes:
      task: says what answers mean: `task.describe(answer, 5)` lists the surest of one image.
      views: over which answers are averaged (`read_views`).
      description: of the weights, in a few words.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        preprocessing: Preprocessing,
        task: Task,
        *,
        views: Sequence[View] = (),
        batch_size: int = 32,
        description: str = "",
    ) -> None:
        """Folds; nothing is compiled yet."""
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self.preprocessing, self.task = preprocessing, task
        self.batch_size, self.description = batch_size, description
        shape = viewed_shape(list(views), self.image_shape)
        model, variables = fold_batch_norm(model, variables, shape)
        self._variables = jax.device_put(variables)
        preprocess = make_preprocess(preprocessing.mean, preprocessing.std)
        forward = make_forward(model, preprocess, list(views))
        self._forward = lambda variables, x: task.answer(forward(variables, x))
        self._answer = jax.jit(self._forward)
        self._compiled: dict[tuple[int, str], Any] = {}
        self._lock = threading.Lock()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images it is called with."""
        return *self.preprocessing.image_size, self.preprocessing.channels

    def __call__(self, images: np.ndarray) -> Any:
        """See the class. Raises UserError for images of another shape or type."""
        images = np.asarray(images)
        if images.shape[1:] != self.image_shape or not len(images):
            raise UserError(
                f"images must be [N, {', '.join(map(str, self.image_shape))}], got "
                f"{list(images.shape)}: `read` brings files to this size, and "
                "`preprocessing.fit` arrays"
            )
        if images.dtype != np.uint8:
            if not np.issubdtype(images.dtype, np.floating):
                raise UserError(f"images must be uint8, or floats in 0..1, got {images.dtype}")
            images = images.astype(np.float32)
            check_range(images)
        parts = []
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            answers = jax.device_get(self.submit(part))
            count = len(part)
            parts.append(jax.tree.map(lambda x, count=count: x[:count], answers))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    @property
    def function(self) -> Callable[[jax.Array], Any]:
        """Images uint8 [N, H, W, C] -> answers [N, ...], for jax to transform; it has the weights.

        Nothing is checked, padded or kept from one trace to the next.
        """
        return lambda images: self._forward(self._variables, images)

    def submit(self, images: np.ndarray) -> Any:
        """Starts on up to `batch_size` images and returns at once: answers on the device, padded.

        `jax.device_get` waits for them. Images are not checked.
        """
        size = self._find_size(len(images))
        rest = np.zeros((size - len(images), *images.shape[1:]), images.dtype)
        padded = np.concatenate([images, rest])
        return self._compile(padded)(self._variables, padded)

    def _find_size(self, count: int) -> int:
        """The batch that `count` images are padded to."""
        return min(1 << (count - 1).bit_length(), self.batch_size)

    def _compile(self, images: np.ndarray) -> Any:
        key = len(images), images.dtype.name
        with self._lock:  # threads that need the same program wait for one of them to make it
            if key not in self._compiled:
                self._compiled[key] = self._answer.lower(self._variables, images).compile()
            return self._compiled[key]

    def read(self, file: str | Path, resize: str | None = None) -> np.ndarray:
        """An image file -> uint8 [H, W, C]; `resize` "crop", "stretch" or "pad" replaces its own.

        Raises UserError that names the file.
        """
        preprocessing = self.preprocessing
        if resize:
            preprocessing = dataclasses.replace(preprocessing, resize=resize)
        return preprocessing.read(file)

    def predict(
        self, files: Sequence[str | Path], resize: str | None = None
    ) -> Iterator[tuple[str | Path, Any]]:
        """Each file with its answer, or with the UserError that says what is wrong with it.

        Files are read and computed `batch_size` at a time; `resize` as for `read`. Answers with
        places are about the file's own pixels, once it is upright.
        """
        size = self._find_size(min(self.batch_size, len(files))) if files else 1
        for start in range(0, len(files), size):
            batch = np.zeros((size, *self.image_shape), np.uint8)  # the last one is padded
            chosen, errors = files[start : start + size], {}
            for index, file in enumerate(chosen):
                try:
                    batch[index] = self.read(file, resize)
                except UserError as error:
                    errors[index] = error
            answers = self(batch) if len(errors) < len(chosen) else batch
            for index, file in enumerate(chosen):
                one = errors.get(index) or jax.tree.map(lambda x, i=index: x[i], answers)
                if self.task.places and index not in errors:
                    height, width, _ = probe_image(file)
                    one = self.fit_answer(one, (height, width), resize)
                yield file, one

    def fit_answer(self, answer: Any, size: tuple[int, int], resize: str | None = None) -> Any:
        """The answer for one image in pixels of the original, which was of `size`."""
        preprocessing = self.preprocessing
        if resize:
            preprocessing = dataclasses.replace(preprocessing, resize=resize)
        matrix = np.linalg.inv(preprocessing.matrix(size))
        return self.task.fit_answer(answer, matrix, size)
