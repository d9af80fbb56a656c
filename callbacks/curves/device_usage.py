"""Measures the use of the hardware: FLOPs utilization, and memory of devices and host."""

import os

import keras
import tensorflow as tf

from callbacks.curves.flops import ModelFlops, model_flops_of

# TFLOPS of a device without sparsity: in half precision (float16, bfloat16), and in float32, where TensorFlow uses TF32 if the
# device has it. The first entry whose name is part of the device's name counts.
# Sources, NVIDIA's data sheets:
# V100   https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf
# T4     https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf
# A100   https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
# A30    https://www.nvidia.com/en-us/data-center/products/a30-gpu
# L40S   https://www.nvidia.com/en-us/data-center/l40s
# H100   https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet
# H200   https://www.nvidia.com/en-us/data-center/h200
PEAK_TFLOPS = {
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 494.0),
    "L40S": (362.0, 183.0),
    "A100": (312.0, 156.0),
    "A30": (165.0, 82.0),
    "V100-PCIE": (112.0, 14.0),
    "V100": (125.0, 15.7),
    "Tesla T4": (65.0, 8.1),
}


def peak_tflops(device: str, compute_dtype: str) -> float | None:
    """Returns the peak TFLOPS of a device; None if it is not in the table.

    Args:
        device: its name, as in `tf.config.experimental.get_device_details`.
        compute_dtype: the compute dtype of the model's layers.
    """
    half, single = next((peaks for name, peaks in PEAK_TFLOPS.items() if name in device), (None, None))
    return half if compute_dtype in ("float16", "bfloat16") else single


class DeviceUsage:
    """The use of the hardware by one training.

    Args:
        model: the model in training. Its operations are counted only if the peak of the devices is known.
        peak: the peak TFLOPS of a device; None looks it up in the table.
    """

    def __init__(self, model: keras.Model, peak: float | None):
        self._gpus = tf.config.get_visible_devices("GPU")
        self._peak = peak or self._peak_in_table(model)
        self._flops: ModelFlops | None = model_flops_of(model) if self._peak else None

    def values(self, samples_per_second_per_replica: float) -> dict[str, float]:
        """Returns curve -> value."""
        values = {}
        per_sample = self._flops.per_sample() if self._flops else None
        if per_sample and self._peak:
            values["device/model_flops_utilization"] = per_sample * samples_per_second_per_replica / (self._peak * 1e12)
        peaks = [tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i in range(len(self._gpus))]
        if peaks:
            values["device/peak_memory_gigabytes"] = max(peaks) / 1e9
        resident = _resident_bytes()
        return values | ({"host/memory_gigabytes": resident / 1e9} if resident else {})

    def _peak_in_table(self, model: keras.Model) -> float | None:
        if not self._gpus:
            return None
        return peak_tflops(
            tf.config.experimental.get_device_details(self._gpus[0]).get("device_name", ""),
            model.dtype_policy.compute_dtype,
        )


def _resident_bytes() -> int | None:
    """Returns the host memory that this process uses, in bytes; None if unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
