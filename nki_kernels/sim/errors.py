"""One named error for each rule of the hardware or the language that a kernel can break."""


class NkiValidationError(ValueError):
    """A kernel asks for what a NeuronCore cannot do."""


class ArgumentError(NkiValidationError):
    """Arguments that the function lacks, or does not have, such as the former `mask=`."""


class NotSimulatedError(NkiValidationError):
    """What a NeuronCore can do and this simulator cannot."""


class PartitionCountError(NkiValidationError):
    """More than 128 partitions, or operands that differ in partitions."""


class PartitionStartError(NkiValidationError):
    """More than 64 partitions start at 0, more than 32 at 0 or 64, others at 0, 32, 64 or 96."""


class PartitionMismatchError(NkiValidationError):
    """Two SBUF inputs of one instruction start on different partitions, those of a matmul too: row
    p of the array of TensorE takes both from partition p."""


class BufferError(NkiValidationError):
    """An operand lies in a memory that the engine cannot reach."""


class PsumAccessError(BufferError):
    """DMA and GpSimd cannot touch PSUM."""


class BothPsumError(BufferError):
    """Both inputs of a two-input instruction lie in PSUM."""


class OutputBufferError(BufferError):
    """A kernel returns a tensor that is not in shared HBM."""


class MatmulShapeError(NkiValidationError):
    """Contraction beyond 128 partitions, more than 128 stationary or 512 moving columns."""


class MatmulDtypeError(NkiValidationError):
    """A dtype, or a pair of them, that the tensor engine does not multiply."""


class PsumBankError(NkiValidationError):
    """A matmul's result crosses a 2 KiB bank of PSUM."""


class FirstAccumulateError(NkiValidationError):
    """A matmul accumulates onto what no matmul wrote."""


class PoisonReadError(NkiValidationError):
    """An instruction reads memory that nothing has written."""


class OperandError(NkiValidationError):
    """Something other than a tile where a tile must be, or, where a scalar operand must be, neither
    a Python number nor a float32 tile of (partitions, 1)."""


class OperationError(NkiValidationError):
    """An operation that the engine does not have."""


class ReduceAxisError(NkiValidationError):
    """A reduction over anything but trailing free axes, a collective along another dimension than
    it may."""


class ElementCountError(NkiValidationError):
    """Operands that differ in elements, or an instruction that takes fewer of them."""


class OutOfBoundsError(NkiValidationError):
    """A slice or access pattern that leaves its tensor."""


class AccessPatternError(NkiValidationError):
    """An access pattern or view that an engine cannot walk."""


class DtypeError(NkiValidationError):
    """A dtype that the instruction does not take there."""


class DmaError(NkiValidationError):
    """A DMA that its descriptor engine cannot make: casts by hwdge, unknown axes."""


class GenerationError(NkiValidationError):
    """An instruction that this generation of the chip does not have."""


class LoopError(NkiValidationError):
    """A loop on the device where none may be, or one without its next condition."""


class CapacityError(NkiValidationError):
    """More live bytes in SBUF or PSUM than a partition has."""


class LaunchError(NkiValidationError):
    """A grid, a rank or a barrier that does not fit the others."""
