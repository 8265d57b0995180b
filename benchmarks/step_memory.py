"""Peak memory of a few training steps, in a process of its own for each form."""

from benchmarks.machine import device_peak, forget_peak, memory
from benchmarks.measuring import measured
from benchmarks.processes import in_a_process
from benchmarks.steps import epoch_seconds, with_basis


def measure_memory(args, data):
    """Measures each of the forms that the command line asks for, on random data."""

    def by_itself(form):
        options = ("--peak", form, "--width", args.width, "--batch", args.batch)
        return in_a_process("benchmarks.speed", *options)

    for form in args.forms:
        measured(
            args.output,
            f"memory-{args.width}x{args.batch}-{form}",
            {"form": form, "width": args.width, "batch": args.batch},
            lambda form=form: by_itself(form),
        )


def peak_memory(form, size, data, steps=5):
    """Memory of this process in MiB: before a few training steps, and its peaks."""
    width, batch = size
    (x, y), _ = data
    model = with_basis(form, width, x)
    result = {"before_mib": memory("VmRSS"), "peak_before_mib": memory("VmHWM")}
    forget_peak()
    epoch_seconds(model, x, y, batch, min(steps, len(x) // batch))
    result["peak_mib"] = memory("VmHWM")
    result["device_peak_mib"] = device_peak()
    return result


def memory_table(results):
    columns = ("before_mib", "peak_before_mib", "peak_mib", "device_peak_mib")
    yield (
        *("width", "batch", "form", "before the steps"),
        *("peak until then", "peak in them", "of the GPU"),
    )
    for result in results:
        values = [result[column] for column in columns]
        yield (
            *(result["settings"][key] for key in ("width", "batch", "form")),
            *("–" if value is None else f"{value:,.0f} MiB" for value in values),
        )
