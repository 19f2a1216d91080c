#!/bin/sh
# Begin a container of the image: a program of it by its name, or else a command of `stylegan`.
#   entry.sh ray start --head ...   prefect worker start ...   mlflow server ...   bash
#   entry.sh run CONFIG             serve MODEL                --help
#   entry.sh driver run CONFIG      the same, on a node of the Ray cluster: what runs on a cluster needs one
set -eu
case ${1:-} in
ray | prefect | mlflow | python | python3 | bash | sh)
    exec "$@"
    ;;
stylegan)
    shift
    ;;
driver)
    shift
    : "${STYLEGAN_RAY_ADDRESS:?names the head of the cluster that a driver joins}"
    # A node that does no work. It ends with the container.
    ray start --address="$STYLEGAN_RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --disable-usage-stats >&2
    ;;
esac
exec stylegan "${@:---help}"
