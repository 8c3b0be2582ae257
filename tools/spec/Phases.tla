------------------------------- MODULE Phases -------------------------------
(* Changes of phase, with the fence that holds writes; the last step. *)
EXTENDS Replication

(* Changes of phase: migration/transitions.py, replicator.py catch_up, cutover.py *)

Queued == \E c \in Writers : writes[c].state \in {"queued", "orphan"}
Drained == server.applied >= server.committed \/ Mistake("no-drain")

CloseGate(goal) == [server EXCEPT !.step = "closed", !.goal = goal]
OpenGate == [server EXCEPT !.step = "none", !.goal = "none", !.inspected = NotInspected]

(* Transitions._to_dual_write claims the target, then closes the fence. *)
ClaimForDualWrite ==
  /\ server.up /\ Stable /\ server.phase = SqliteOnly /\ ~Attached /\ ~TakenOver
  /\ targetUp /\ target.phase # PostgresOnly /\ target.holder # OtherServer
  /\ Spend("moves", MaxMoves)
  /\ target' = [target EXCEPT !.holder = server.incarnation]
  /\ server' = [server EXCEPT
       !.inspected = [stage |-> "begin", applied |-> target.applied,
                      new |-> target.applied = 0 /\ ~target.begun]]
  /\ UNCHANGED <<source, targetUp, backup, inFlight, clients>>

BeginDualWrite ==
  /\ server.up /\ Stable /\ server.phase = SqliteOnly /\ server.inspected.stage = "begin"
  /\ server' = CloseGate("dual write")
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* Transitions._to_read_postgres and Fallback._return: both use Fallback.catch_up. *)
BeginReadPostgres ==
  /\ server.up /\ Stable /\ server.phase = Backfill /\ Steps /\ server.mark = Ids
  /\ Spend("moves", MaxMoves)
  /\ server' = CloseGate("read postgres")
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients>>

BeginReturn ==
  /\ server.up /\ Stable /\ server.phase = ReadPostgres
  /\ ~Current /\ Steps /\ server.mark = Ids
  /\ server' = CloseGate("return")
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* Cutover.complete *)
BeginLastStep ==
  /\ Included("last step")
  /\ server.up /\ Stable /\ server.phase = ReadPostgres /\ Current
  /\ Spend("moves", MaxMoves)
  /\ server' = CloseGate("last step")
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients>>

(* The change passes the queue of writes, so no earlier write remains. `committed` is then up to date. *)
Behind(change) ==
  /\ server.up /\ server.step = "closed" /\ ~Queued
  /\ source' = change
  /\ server' = [server EXCEPT !.step = "changed", !.committed = source.revision]

(* The write queue is flushed first, so `base` counts every write that has no journal entry. *)
CommitDualWrite ==
  /\ server.goal = "dual write"
  /\ LET found == server.inspected
         flushed == IF Mistake("base-before-flush") THEN server.committed ELSE source.revision IN
     Behind([source EXCEPT
       !.phase = DualWrite,
       !.base = IF found.new THEN flushed ELSE found.applied,
       !.pruned = IF found.new THEN source.revision ELSE found.applied,
       !.journal = IF found.new THEN {} ELSE Rejournalled(found.applied)])
  /\ UNCHANGED <<target, targetUp, backup, inFlight, clients, faults>>

CommitReadPostgres ==
  /\ server.goal = "read postgres"
  /\ Behind([source EXCEPT !.phase = ReadPostgres])
  /\ UNCHANGED <<target, targetUp, backup, inFlight, clients, faults>>

CommitReturn ==
  /\ server.goal = "return"
  /\ Behind(source)
  /\ UNCHANGED <<target, targetUp, backup, inFlight, clients, faults>>

CommitCompleting ==
  /\ server.goal = "last step"
  /\ Behind([source EXCEPT !.completing = ~Mistake("target-first")])
  /\ UNCHANGED <<target, targetUp, backup, inFlight, clients, faults>>

(* CurrentState.enter: a phase that is durable in the source becomes the current one. *)
EnterPhase ==
  /\ server.up /\ source.phase # server.phase /\ server.phase # PostgresOnly
  /\ server.step \in {"none", "changed"}
  /\ server' = [(IF server.goal = "dual write" THEN OpenGate ELSE server) EXCEPT
       !.phase = source.phase,
       !.standing = IF @ = "current" THEN "following" ELSE @]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* Fallback.catch_up: the target has every committed change, so it may answer reads. *)
MakeCurrent ==
  /\ server.up /\ server.step = "changed" /\ server.goal \in {"read postgres", "return"}
  /\ server.phase = ReadPostgres /\ source.phase = ReadPostgres /\ Attached /\ Drained
  /\ server' = [OpenGate EXCEPT !.standing = "current"]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* A step took too long: the fence opens. Attaching, if it has begun meanwhile, continues. *)
GiveUp ==
  /\ server.up /\ server.step \in {"closed", "changed"} /\ source.phase = server.phase
  /\ server' = [OpenGate EXCEPT !.inspected = IF server.goal = "dual write" THEN @ ELSE server.inspected]
  /\ source' = [source EXCEPT !.completing = FALSE]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, clients, faults>>

(* Transitions._to_backfill *)
ToBackfill ==
  /\ server.up /\ Stable /\ server.phase = DualWrite /\ Spend("moves", MaxMoves)
  /\ source' = [source EXCEPT !.phase = Backfill]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, server, clients>>

(* Transitions._back: one phase back, at any time; without a journal its entries are removed. *)
Back ==
  /\ server.up /\ Stable /\ Journals(server.phase) /\ Spend("moves", MaxMoves)
  /\ source' = [source EXCEPT !.phase = server.phase - 1,
                              !.journal = IF server.phase = DualWrite THEN {} ELSE @]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, server, clients>>

(* Replicator.stop, when the phase has no journal. *)
StopFollowing ==
  /\ server.up /\ server.phase = SqliteOnly /\ source.phase = SqliteOnly /\ Stable /\ Attached
  /\ server' = [Detached EXCEPT !.applied = 0, !.held = FALSE, !.contested = FALSE] /\ LetGo
  /\ UNCHANGED <<source, target, targetUp, backup, writes, floor, absences, broken, faults>>

-----------------------------------------------------------------------------
(* The last step: migration/cutover.py Cutover._take_over *)

SendFinish ==
  /\ server.up /\ server.step = "changed" /\ server.goal = "last step" /\ Drained
  /\ server' = [server EXCEPT !.step = "asking"]
  /\ inFlight' = inFlight \union {Transaction("finish")}
  /\ UNCHANGED <<source, target, targetUp, backup, clients, faults>>

FinishOnItsWay ==
  \E t \in inFlight : t.kind = "finish" /\ t.state = "sent" /\ t.session = server.incarnation

(* The answer to finish is lost, before or after its commit. *)
LoseFinishAnswer ==
  /\ server.up /\ server.step = "asking" /\ Awaited("finish") /\ Spend("cuts", MaxCuts)
  /\ inFlight' = Forsaken({"finish"})
  /\ UNCHANGED <<source, target, targetUp, backup, server, clients>>

(* The target answers that it is the only store. *)
TargetHasTakenOver ==
  /\ server.up /\ server.step = "asking" /\ target.phase = PostgresOnly
  /\ targetUp \/ \E t \in inFlight : t.kind = "finish" /\ t.state = "done"
  /\ server' = [OpenGate EXCEPT !.phase = PostgresOnly, !.standing = "detached"]
  /\ inFlight' = {t \in inFlight : t.kind # "finish"}
  /\ UNCHANGED <<source, target, targetUp, backup, clients, faults>>

(* Cutover._ask: renew waits for a finish in progress, which separates "not yet" from "never". *)
TargetHasNotTakenOver ==
  /\ server.up /\ server.step = "asking" /\ targetUp /\ target.phase # PostgresOnly
  /\ \/ target.holder # server.incarnation      \* a finish that comes later is refused
     \/ ~FinishOnItsWay
     \/ Mistake("not-yet-is-never") /\ ~Awaited("finish")
     \/ \E t \in inFlight : t.kind = "finish" /\ t.state = "sent" /\ t.wait /\ ~InPlace(t)
  /\ server' = OpenGate
  /\ source' = [source EXCEPT !.completing = FALSE]
  /\ inFlight' = {t \in inFlight : ~(t.kind = "finish" /\ t.wait)}
  /\ UNCHANGED <<target, targetUp, backup, clients, faults>>

(* Cutover.archive: the source's file becomes an archive. *)
Archive ==
  /\ server.up /\ server.phase = PostgresOnly /\ source.phase # PostgresOnly
  /\ source' = [source EXCEPT !.phase = PostgresOnly, !.completing = FALSE]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, server, clients, faults>>
=============================================================================
