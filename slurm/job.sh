# shellcheck shell=bash
# Functions for mirrored.sbatch and horovod.sbatch, which source this file.
#
# train NODES RANKS_PER_NODE ARGS...: starts one launcher on each node, passes on Slurm's warning, and requeues the job when the run
# has saved and exited (exit_requeue). It does not requeue a job that has crashed or was cancelled.

# Observed on Slurm 22.05:
# - srun kills its tasks on TERM, so this script never forwards TERM to srun; Slurm itself sends TERM to the tasks.
# - srun dies of USR1 while it starts, so this script forwards a warning with scancel, repeatedly until the step ends.
# - Slurm signals every process of a step, and a process without a handler would die: tasks ignore USR1 and USR2 until they catch them.
# - A trap with a command substitution or a pipe may crash bash if CONT and TERM arrive together, so the traps only assign variables.
# - The last element of an array has the array's job id as SLURM_JOB_ID, so an element is identified by both numbers.
warned=${warned-} ended=${ended-}
exit_bad_input=2 exit_requeue=75 exit_terminated=143 # copied from launch/exit_codes.py
this_job=${SLURM_ARRAY_JOB_ID+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} this_job=${this_job:-$SLURM_JOB_ID}

fail() {
    echo "error: $*" >&2
    exit "$exit_bad_input"
}

prepare() {
    cd "${SLURM_SUBMIT_DIR:?submit it: sbatch ${0##*/} -m recipes.mnist}" || exit "$exit_bad_input"
    local one_each='^1(\(x[0-9]+\))?$'
    [[ $SLURM_TASKS_PER_NODE =~ $one_each ]] ||
        fail "each node must run one task, which starts the ranks. Received: $SLURM_TASKS_PER_NODE tasks per node." \
            "Do not use --ntasks or --ntasks-per-node; use --gpus-per-node, or NPROC_PER_NODE without GPUs."
    if [[ -n ${SLURM_GPUS-} ]] && ((SLURM_GPUS_ON_NODE * SLURM_NNODES != SLURM_GPUS)); then
        fail "Slurm has split --gpus=$SLURM_GPUS unevenly over $SLURM_NNODES nodes. Use --gpus-per-node."
    fi
    for module in ${MODULES-}; do module load "$module" || fail "there is no module $module"; done
    read -ra container <<<"${CONTAINER-}"
    read -ra srun_flags <<<"${SRUN_FLAGS-}"
    choose_python
    # Ranks need the end time of the job, to start no save that would be cut off. A job that is submitted from within another job
    # inherits the SLURM_JOB_END_TIME of that job.
    local job end
    job=$(scontrol show job -o "$this_job")
    end=${job#* EndTime=}
    unset SLURM_JOB_END_TIME
    end=$(date -d "${end%% *}" +%s 2>/dev/null) && export SLURM_JOB_END_TIME=$end
    # The launchers of the job authenticate each other with this secret.
    export LAUNCH_SECRET=${LAUNCH_SECRET:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
}

# Selects the Python of a container, PYTHON or an environment, but never the system's Python by accident.
choose_python() {
    [[ -z ${container[*]} && ${srun_flags[*]} != *--container* && -z $PYTHON ]] || return 0
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [[ -z $VENV && ! -x .venv/bin/python && -n $active ]]; then VENV=$active; fi
    VENV=${VENV:-.venv}
    [[ $VENV == /* ]] || VENV=$PWD/$VENV
    [[ -x $VENV/bin/python ]] ||
        fail "there is no Python environment at $VENV. \`make train\` creates .venv; VENV=/path/to/env selects another virtual or" \
            "conda environment, and PYTHON=python3 selects the interpreter on the PATH."
    PATH=$VENV/bin:$PATH
}

train() {
    local nodes=$1 per_node=$2 rendezvous=()
    local step code job state preempted killed_early="" outcome="has saved"
    shift 2
    echo "job $this_job, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $*"
    # Jobs may share a node, so each needs its own port.
    ((nodes == 1)) || rendezvous=(--master-port $((20000 + SLURM_JOB_ID * 37 % 12000)))
    # Without --kill-on-bad-exit, the launchers end each other and report the reason.
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 "${srun_flags[@]}" \
        bash -c 'trap "" USR1 USR2; exec "$@"' launcher "${container[@]}" "${PYTHON:-python}" -m launch \
        --nproc-per-node "$per_node" "${rendezvous[@]}" --grace 3600 \
        --rdzv-id "$this_job.${SLURM_RESTART_COUNT:-0}" --log-dir "runs/logs/$this_job" "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do
        [[ -z $warned ]] || scancel --signal="$warned" "$this_job.0" 2>/dev/null # repeated until the step ends
        sleep 1 &
        wait $!
    done
    wait "$step"
    code=$?

    job=$(scontrol show job -o "$this_job")
    state=${job#* JobState=} state=${state%% *}
    preempted=${job#* PreemptTime=} preempted=${preempted%% *}
    # A warning that arrives before a task ignores it kills the task; srun then exits with 128 + the signal's number.
    if [[ -n $warned ]] && ((code == 128 + $(kill -l "$warned"))); then
        killed_early=1 outcome="was warned before it trained"
    fi
    # exit_requeue: saved after a warning. exit_terminated: saved after TERM, which Slurm sends to the tasks of a preempted or cancelled
    # job; on scancel, this shell gets TERM too.
    if [[ $state == RUNNING && -z $ended ]] &&
        { ((code == exit_requeue)) || [[ -n $killed_early || ($code == "$exit_terminated" && $preempted != None) ]]; }; then
        if ((${SLURM_RESTART_COUNT:-0} >= MAX_REQUEUES)); then
            echo "error: not requeued: the job was requeued $MAX_REQUEUES times (MAX_REQUEUES)" >&2
        elif scontrol requeue "$this_job"; then
            echo "job $this_job $outcome and is requeued"
            sleep 60 # until Slurm ends this attempt
        fi
    fi
    exit "$code"
}
