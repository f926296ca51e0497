#!/bin/sh
# Prints the memory and the instructions of packed networks on a Cortex-M4 and M0+, in QEMU: scripts/mcu.sh RUN [RUN ...]
#
# It needs arm-none-eabi-gcc with newlib and qemu-system-arm:
#     apt install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
exec "${PYTHON:-python3}" "$(dirname "$0")/mcu/measure.py" "$@"
