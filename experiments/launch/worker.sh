#!/usr/bin/env bash
# This script runs on each worker of a TPU slice. tpu_vm.py copies the repository there and calls it.
#
#   worker.sh set_up COMMIT EXTRAS SOURCE SHARED PACKAGES
#       mounts SOURCE (gs://BUCKET, or HOST:/EXPORT by NFS) at SHARED, and installs this repository.
#       The first install writes the versions of its packages to PACKAGES, and later ones install the
#       same, so that a resumed run has the packages of its first start.
#   worker.sh start ARGUMENTS... [-- ARGUMENTS...]
#       starts the trainer in the background; arguments after -- are for the next run, which starts
#       when this one has finished
#   worker.sh stop           ends the trainer, which saves first
#   worker.sh status [COMMIT KEY]
#       prints the state of the trainer, and whether it differs from the commit and from the arguments
#       with this KEY, if they are given
#   worker.sh logs LINES     prints the last lines of the trainer's log
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."
state=$HOME/.pkpo_jax
python=$state/venv/bin/python
mkdir -p "$state"

# Prints the number of this worker, from where JAX reads it too.
worker() {
  curl -fsS --max-time 10 -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
}

apt_install() {
  # On a machine that has just started, automatic updates hold the lock of apt.
  sudo apt-get -o DPkg::Lock::Timeout=600 update
  sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y "$@"
}

mount_shared() {
  local source=$1 shared=$2
  if mountpoint -q "$shared"; then return; fi
  sudo mkdir -p "$shared"
  if [[ $source != gs://* ]]; then
    apt_install nfs-common
    sudo mount -t nfs "$source" "$shared"
    sudo install -d -m 777 "$shared/runs"
    return
  fi
  if ! command -v gcsfuse >/dev/null; then
    local keys=/usr/share/keyrings/cloud.google.asc
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$keys" >/dev/null
    echo "deb [signed-by=$keys] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt_install gcsfuse
  fi
  sudo chown "$(id -u)" "$shared"
  # Orbax renames directories. Hosts have to see at once what another host has written, so no
  # metadata is cached. Metrics have to be in the bucket once they are synced, and streamed writes
  # would be there only after closing.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 --enable-streaming-writes=false \
    "${source#gs://}" "$shared"
}

set_up() {
  local commit=$1 extras=$2 source=$3 shared=$4 packages=$5 same=()
  rm -f "$state/installed"
  mount_shared "$source" "$shared"
  # The images have Python 3.10; uv installs a newer one.
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl -fsSL https://astral.sh/uv/install.sh | sh
  [ -x "$python" ] || uv venv --python 3.11 "$state/venv"
  if [ -f "$packages" ]; then same=(--constraint "$packages"); fi
  uv pip install --python "$python" "${same[@]}" --editable ".[$extras]"
  if [ ! -f "$packages" ] && [ "$(worker)" = 0 ]; then
    uv pip freeze --python "$python" --exclude-editable >"$state/packages"
    mkdir -p "$(dirname "$packages")"
    cp "$state/packages" "$packages"
  fi
  echo "$commit $shared" >"$state/installed"
  echo "worker $(worker): installed $commit"
}

start() {
  exec 9>"$state/lock"
  # The lock is held until the runs have ended.
  if ! flock -n 9; then
    echo "worker $(worker): runs already"
    return
  fi
  rm -f "$state/exit" "$state/pid"
  printf '%s\n' "$@" | sha1sum | cut -c -8 >"$state/key"
  # In its own session, the process survives the end of the ssh session.
  setsid bash experiments/launch/worker.sh run "$@" </dev/null >"$state/runs.log" 2>&1 &
  echo "worker $(worker): started"
}

run() {
  local argument arguments=() code=0
  for argument in "$@" --; do
    if [ "$argument" != -- ]; then
      arguments+=("$argument")
      continue
    fi
    train "${arguments[@]}" || code=$?
    if [ "$code" != 0 ]; then break; fi
    arguments=()
  done
  echo "$code" >"$state/exit"
}

train() {
  local argument workdir='' code=0 log
  for argument; do
    case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
  done
  # The trainer does not inherit the lock, for a process that it leaves behind would keep it.
  "$python" -m pkpo_jax.main "$@" >"$state/trainer.log" 2>&1 9>&- &
  echo $! >"$state/pid"
  wait $! || code=$?
  rm -f "$state/pid"
  log=$workdir/logs/$(date -u +%Y%m%dT%H%M%SZ)-worker$(worker).log
  mkdir -p "$workdir/logs" && cp "$state/trainer.log" "$log" || true
  # The first process writes the report at the very end.
  if [ "$code" = 0 ] && [ "$(worker)" = 0 ]; then touch "$workdir/finished"; fi
  return "$code"
}

stop() {
  # Between two runs, there is no trainer for a short time.
  until flock -n "$state/lock" true || kill -TERM "$(cat "$state/pid")"; do sleep 1; done
  # The trainer saves at the end of its step, which can include an evaluation.
  flock -w 600 "$state/lock" true || kill -KILL "$(cat "$state/pid")"
  flock -w 60 "$state/lock" true
  echo "worker $(worker): stopped"
}

status() {
  local now="not started" commit='' shared=/ key=''
  if [ -f "$state/installed" ]; then read -r commit shared <"$state/installed"; fi
  if [ -f "$state/key" ]; then key=$(cat "$state/key"); fi
  if [ -f "$state/exit" ] && [ "$key" = "${2:-$key}" ]; then now="exit $(cat "$state/exit")"; fi
  if ! flock -n "$state/lock" true; then
    now=running
    if [ "$key" != "${2:-$key}" ]; then now="running something else"; fi
  # The mount does not survive a restart of the machine.
  elif [ "$now" != "exit 0" ] &&
    { [ "$commit" != "${1:-$commit}" ] || [ -z "$commit" ] || ! mountpoint -q "$shared"; }; then
    now="not installed"
  fi
  echo "worker $(worker): $now"
}

logs() { tail -n "$1" "$state/trainer.log" | tr '\r' '\n' | tail -n "$1" | sed "s/^/worker $(worker): /"; }

"$@"
