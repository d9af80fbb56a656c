# shellcheck shell=bash
# What a job of this project does in Slurm, for mirrored.sbatch and horovod.sbatch, which source it.
#
# train NODES RANKS_PER_NODE ARGS...: starts one launcher on each node, warns it when Slurm warns the job, and requeues the job when
# the run has saved and left (exit code REQUEUE). A crash stays a crash, and a cancelled job stays cancelled.

# What follows is measured, on Slurm 22.05:
# - srun answers TERM by killing the tasks, so TERM is never passed on to it; Slurm itself signals the tasks with TERM.
# - srun dies of a USR1 in its first moments, so a warning goes through scancel, and goes again until it has been heard.
# - Both reach every process of the step. One that is still starting would die of it: USR1 and USR2 are ignored until it catches them.
# - A trap with a command substitution or a pipe may crash bash when CONT and TERM come together: those of the two files only assign.
# - The last element of an array has the array's own number as SLURM_JOB_ID: to name it alone takes the two numbers.
warned=${warned-} ended=${ended-}
exit_bad_input=2 exit_requeue=75 exit_terminated=143 # as in launch/exit_codes.py, which a job's shell cannot import
this_job=${SLURM_ARRAY_JOB_ID+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} this_job=${this_job:-$SLURM_JOB_ID}

fail() {
    echo "error: $*" >&2
    exit "$exit_bad_input"
}

prepare() {
    cd "${SLURM_SUBMIT_DIR:?submit it: sbatch ${0##*/} -m recipes.mnist}" || exit "$exit_bad_input"
    local one_each='^1(\(x[0-9]+\))?$'
    [[ $SLURM_TASKS_PER_NODE =~ $one_each ]] ||
        fail "one task runs on each node, and starts the ranks. Received: $SLURM_TASKS_PER_NODE tasks per node." \
            "Leave out --ntasks and --ntasks-per-node; give --gpus-per-node, or NPROC_PER_NODE where there are no GPUs."
    if [[ -n ${SLURM_GPUS-} ]] && ((SLURM_GPUS_ON_NODE * SLURM_NNODES != SLURM_GPUS)); then
        fail "Slurm has split --gpus=$SLURM_GPUS unevenly over $SLURM_NNODES nodes. Use --gpus-per-node."
    fi
    for module in ${MODULES-}; do module load "$module" || fail "there is no module $module"; done
    read -ra container <<<"${CONTAINER-}"
    read -ra srun_flags <<<"${SRUN_FLAGS-}"
    choose_python
    # The ranks learn when the job ends, so that they begin no save that the end would cut off. A job that is submitted from
    # within another one inherits that one's SLURM_JOB_END_TIME.
    local job end
    job=$(scontrol show job -o "$this_job")
    end=${job#* EndTime=}
    unset SLURM_JOB_END_TIME
    end=$(date -d "${end%% *}" +%s 2>/dev/null) && export SLURM_JOB_END_TIME=$end
    # The launchers know each other by it. Only this job's processes see it.
    export LAUNCH_SECRET=${LAUNCH_SECRET:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
}

# Never the system's Python by accident: that of a container, or of PYTHON, or of an environment that is there.
choose_python() {
    [[ -z ${container[*]} && ${srun_flags[*]} != *--container* && -z $PYTHON ]] || return 0
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [[ -z $VENV && ! -x .venv/bin/python && -n $active ]]; then VENV=$active; fi
    VENV=${VENV:-.venv}
    [[ $VENV == /* ]] || VENV=$PWD/$VENV
    [[ -x $VENV/bin/python ]] ||
        fail "there is no Python environment at $VENV. \`make train\` makes .venv; VENV=/path/to/env names another virtual or conda" \
            "environment, and PYTHON=python3 takes the interpreter on the PATH."
    PATH=$VENV/bin:$PATH
}

train() {
    local nodes=$1 per_node=$2 meeting=()
    local step code job state preempted
    shift 2
    echo "job $this_job, life $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $*"
    # Jobs may share a node, and the ranks use the ports next to it.
    ((nodes == 1)) || meeting=(--master-port $((20000 + SLURM_JOB_ID * 37 % 12000)))
    # No --kill-on-bad-exit: the launchers end each other, and know why.
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 "${srun_flags[@]}" \
        bash -c 'trap "" USR1 USR2; exec "$@"' launcher "${container[@]}" "${PYTHON:-python}" -m launch \
        --nproc-per-node "$per_node" "${meeting[@]}" --grace 3600 \
        --rdzv-id "$this_job.${SLURM_RESTART_COUNT:-0}" --log-dir "runs/logs/$this_job" "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do
        [[ -z $warned ]] || scancel --signal="$warned" "$this_job.0" 2>/dev/null # again and again, until it was heard
        sleep 1 &
        wait $!
    done
    wait "$step"
    code=$?

    job=$(scontrol show job -o "$this_job")
    state=${job#* JobState=} state=${state%% *}
    preempted=${job#* PreemptTime=} preempted=${preempted%% *}
    # requeue: saved, after a warning. terminated: saved, after TERM, which a preempted job's tasks get, and a cancelled job's, and this shell too.
    if [[ $state == RUNNING && -z $ended ]] && { ((code == exit_requeue)) || [[ $code == "$exit_terminated" && $preempted != None ]]; }; then
        if ((${SLURM_RESTART_COUNT:-0} >= MAX_REQUEUES)); then
            echo "error: not requeued: it has come back $MAX_REQUEUES times (MAX_REQUEUES)" >&2
        elif scontrol requeue "$this_job"; then
            echo "job $this_job saved and left; it is requeued"
            sleep 60 # Slurm ends this life
        fi
    fi
    exit "$code"
}
