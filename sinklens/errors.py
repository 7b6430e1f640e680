"""The errors users meet. Each says what was given, what was expected and what to do."""


class SinklensError(Exception):
    """Base of every error that sinklens raises on purpose."""


class PlanError(SinklensError, ValueError):
    """A decoding plan that cannot be carried out."""


class PromptError(SinklensError, ValueError):
    """A prompt or an answer that cannot be read, or of which it cannot be told what of it is the prompt."""


class CheckpointError(SinklensError, ValueError):
    """A checkpoint that cannot be loaded faithfully."""


class ModelError(SinklensError, ValueError):
    """A transformers model that cannot be wrapped, or was changed so that it can no longer be hooked."""


class Unsupported(SinklensError, NotImplementedError):
    """A tool of TransformerLens that has no right answer for this kind of model."""


class CheckFailed(SinklensError, RuntimeError):
    """A loaded model failed its calibration (`HookedDLM.check`)."""


class HookNeverFired(SinklensError, RuntimeError):
    """A probe or an edit was attached and the model never called it."""


class NotFinite(SinklensError, RuntimeError):
    """A forward gave nan or infinity, in logits or in attention: what is read off it would be no number."""


class ScopeError(SinklensError, ValueError):
    """A `Where` that selects nothing, or names what the model does not have."""


class ContentError(SinklensError, ValueError):
    """Something whose content cannot be told, such as a function without a name, or a value of the wrong kind."""


class GateError(SinklensError, ValueError):
    """A gate that cannot be read or trained, or that was trained on another model."""


class AutoencoderError(SinklensError, ValueError):
    """A sparse autoencoder that cannot be read faithfully, or that belongs to another model or place."""


class DirectionError(SinklensError, ValueError):
    """A direction that cannot be found or read, or that was found on another model."""


class PatchError(SinklensError, ValueError):
    """Two runs between which a patch has no effect that could be measured."""


class RecordError(SinklensError, ValueError):
    """A record file that cannot be read or written."""


class SaveError(SinklensError, OSError):
    """A file that cannot be written where it was asked, or that sinklens did not write and so does not replace."""


class TaskError(SinklensError, ValueError):
    """A task that cannot be read, or asked of this model."""


class CourseError(SinklensError, ValueError):
    """An exercise that there is not, or chapters that cannot be written."""


class NeverExposed(SinklensError, ValueError):
    """A condition of an ablation met no scored place: its numbers would be those of the unedited model.

    Attributes:
        result: The finished ablation (`AblationResult`); None if it was found before the first forward.
    """

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class PartlyExposed(UserWarning):
    """Some scored places of an ablation were decided by forwards in which not a single key was edited."""


class Unchecked(UserWarning):
    """A record without a checksum was opened: whether it is what was measured cannot be told."""
