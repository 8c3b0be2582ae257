-------------------------------- MODULE Trace --------------------------------
(***************************************************************************)
(* Whether a recorded trace is a behaviour of the specification.           *)
(*                                                                         *)
(* Each step explains the next event of the trace by an action of the      *)
(* specification, with the parameters that the event has. A few steps are  *)
(* not recorded; InternalStep has them, each only where the next event     *)
(* needs it. The trace is accepted if the position gets behind its end:    *)
(* TLC then reports that NotAtEnd is violated. tools/spec/trace.py writes  *)
(* the events, and lists what each of them means.                          *)
(***************************************************************************)
EXTENDS Migration, Sequences, TLC

CONSTANTS
  Events,        \* the trace
  OldRows,       \* revision of each message before the trace begins, by id
  FirstRevision  \* greatest revision before the trace begins

VARIABLE position    \* of the next event

traceVars == <<vars, position>>

TraceInit ==
  /\ source = [Source EXCEPT !.row = OldRows, !.revision = FirstRevision, !.pruned = 0, !.base = 0]
  /\ target = Target /\ targetUp = TRUE /\ backup = Target /\ inFlight = {}
  /\ server = Down(0)
  /\ writes = [c \in Writers |-> NoCall] /\ reads = [c \in Readers |-> NoRead]
  /\ floor = OldRows
  /\ absences = [i \in Ids |-> IF OldRows[i] = 0 THEN {0} ELSE {}]
  /\ broken = {}
  /\ faults = [crashes |-> 0, cuts |-> 0, moves |-> 0, setBacks |-> 0, takeOvers |-> 0]
  /\ position = 1

Nothing == UNCHANGED vars
Either(holds) == holds /\ Nothing

-----------------------------------------------------------------------------
(* Writes *)

Queues(c, e) == writes[c].id = e.id /\ writes[c].delete = e.delete

(* A write without a change: it is answered with the stored revision. *)
FindUnchanged(e) ==
  /\ server.up /\ writes[e.call].state = "queued"
  /\ e.revision = (IF server.phase = PostgresOnly THEN target ELSE source).row[e.id]
  /\ writes' = [writes EXCEPT ![e.call].state = "committed", ![e.call].revision = e.revision]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, reads, floor, absences, broken, faults>>

(* A write ended with an error, or was cancelled before it was queued. *)
EndWrite(e) ==
  /\ writes' = [writes EXCEPT ![e.call] = NoCall]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, reads, floor, absences, broken, faults>>

WriteEvent(e) ==
  CASE e.kind = "enter" -> BeginWrite(e.call, e.id, e.delete)
    [] e.kind = "orphan" -> AbandonWrite(e.call)
    [] e.kind = "error" -> EndWrite(e)
    [] e.kind = "unchanged" -> FindUnchanged(e)
    [] e.kind = "commit" -> Queues(e.call, e) /\ e.revision > source.revision
                            /\ CommitWriteAt(e.call, e.revision)
    [] e.kind = "target_write" -> Queues(e.call, e) /\ CommitWriteInTargetAt(e.call, e.revision)
    [] e.kind = "committed" -> e.revision <= source.revision
                          /\ (LearnCommittedUpto(e.revision) \/ Either(e.revision <= server.committed))
    [] e.kind = "ack" -> /\ writes[e.call].revision = e.revision
                         /\ e.both => Fits(target.row[writes[e.call].id], writes[e.call].id, e.revision)
                         /\ Acknowledge(e.call)
    [] e.kind = "requeue" -> e.revision > source.revision /\ Requeue(e.id) /\ source'.revision = e.revision

-----------------------------------------------------------------------------
(* Reads *)

(* The router may ask the source whenever the target does not answer. *)
SnapshotEvent(e) ==
  /\ server.up /\ reads[e.call].state \in {"asked", "read"}
  /\ e.from = "target" => /\ targetUp
                          /\ reads[e.call].from = "target" \/ server.phase = PostgresOnly
  /\ e.row = (IF e.from = "target" THEN target ELSE source).row[reads[e.call].id]
  /\ reads' = [reads EXCEPT ![e.call].state = "read", ![e.call].from = e.from,
                 ![e.call].seen = source.revision, ![e.call].row = e.row]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, writes, floor, absences, broken, faults>>

EndReadWithError(e) ==
  /\ reads' = [reads EXCEPT ![e.call] = NoRead]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, writes, floor, absences, broken, faults>>

ReadEvent(e) ==
  CASE e.kind = "read" -> BeginRead(e.call, e.id)
    [] e.kind = "snapshot" -> SnapshotEvent(e)
    [] e.kind = "answer" -> reads[e.call].row = e.row /\ EndRead(e.call)
    [] e.kind = "read_error" -> EndReadWithError(e)

-----------------------------------------------------------------------------
(* The source *)

StateAfter(e) == source'.phase = e.phase /\ source'.completing = e.completing /\ source'.base = e.base

(* The state that the source has on disk: which change it is follows from what it says. *)
StateEvent(e) ==
  \/ /\ server.up
     /\ \/ CommitDualWrite \/ CommitReadPostgres \/ CommitReturn \/ CommitCompleting
        \/ GiveUp \/ TargetHasNotTakenOver \/ ToBackfill \/ Back \/ Archive
        \/ AttachReconcile /\ source' # source
     /\ StateAfter(e)
  \* A start during the last step: the claim was granted, so the target has not taken over.
  \/ /\ ~server.up /\ source.completing /\ ~e.completing
     /\ target.phase # PostgresOnly /\ target.holder = server.incarnation
     /\ source' = [source EXCEPT !.completing = FALSE]
     /\ UNCHANGED <<target, targetUp, backup, inFlight, server, clients, faults>>
  \/ /\ ~server.up /\ e.phase = PostgresOnly /\ target.phase = PostgresOnly
     /\ source' = [source EXCEPT !.phase = PostgresOnly]
     /\ UNCHANGED <<target, targetUp, backup, inFlight, server, clients, faults>>
  \* Something else is noted, such as the result of a verification.
  \/ /\ e.phase = source.phase /\ e.completing = source.completing /\ e.base = source.base
     /\ ~e.rejournalled /\ Nothing

SourceEvent(e) ==
  CASE e.kind = "state" -> StateEvent(e)
    [] e.kind = "prune" -> PruneUpto(e.upto) /\ e.upto <= Max(server.applied, target.applied)
    [] e.kind = "journal" -> /\ server.applied = e.after /\ e.upto > e.after
                             /\ \E x \in source.journal : x[1] = e.upto
                             /\ SendBatchUpto(e.upto)

-----------------------------------------------------------------------------
(* The target *)

Holds(e) == target.holder = e.session

(* Where a transaction of a kind has been sent, one of those that may commit now. *)
CommitOf(kind, fits(_)) == \E t \in inFlight : t.kind = kind /\ fits(t) /\ CommitTransaction(t)

RowsAre(e) ==
  \A n \in 1..Len(e.rows) : /\ target'.row[e.rows[n].id] = e.rows[n].row
                            /\ target'.tomb[e.rows[n].id] = e.rows[n].tomb

(* The server reads a page ahead, while the page before it is stored. *)
PageEvent(e) ==
  /\ server.up
  /\ inFlight' = inFlight \union
       {[Transaction("copy") EXCEPT !.rows = Content(e.ids), !.covers = e.covers, !.mark = e.mark]}
  /\ UNCHANGED <<source, target, targetUp, backup, server, clients, faults>>

ClaimEvent(e) ==
  \/ e.session = server.incarnation /\ (AttachClaim \/ ClaimForDualWrite)
  \/ /\ ~server.up /\ e.session = server.incarnation /\ target.phase # PostgresOnly
     /\ target.holder # OtherServer
     /\ target' = [target EXCEPT !.holder = e.session]
     /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients, faults>>
  \* A claim commits late that the server has abandoned, or that a killed process of the same file sent.
  \/ /\ \/ server.up /\ e.session = server.incarnation /\ server.inspected.stage \notin {"found", "begin"}
        \/ e.session < server.incarnation
     /\ target.phase # PostgresOnly /\ target.holder # OtherServer
     /\ target' = [target EXCEPT !.holder = e.session]
     /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients, faults>>

(* Attaching, or sending the current phase to the target. *)
SetPhaseEvent(e) ==
  /\ \/ e.session = server.incarnation /\ AttachSetPhase
     \/ /\ Holds(e) /\ server.inspected.stage # "reconciled"
        /\ target' = [target EXCEPT !.phase = e.phase]
        /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients, faults>>
  /\ target'.applied = e.applied

TargetEvent(e) ==
  /\ targetUp
  /\ CASE e.kind = "claim" -> ClaimEvent(e)
       [] e.kind = "set_phase" -> SetPhaseEvent(e)
       [] e.kind = "apply" -> /\ LET fits(t) == t.session = e.session /\ t.upto = e.applied IN
                                 CommitOf("apply", fits)
                              /\ target'.applied = e.applied /\ RowsAre(e)
       [] e.kind = "copy" -> /\ LET fits(t) == t.session = e.session /\ t.mark = e.mark /\ t.covers = e.covers IN
                                CommitOf("copy", fits)
                             /\ RowsAre(e)
       [] e.kind = "renew" -> Holds(e) /\ target.applied = e.applied /\ Nothing
       [] e.kind = "finish" -> LET fits(t) == t.session = e.session IN CommitOf("finish", fits)
       [] e.kind = "release" ->
            /\ target' = [target EXCEPT !.holder = IF Holds(e) THEN NoHolder ELSE @]
            /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients, faults>>

-----------------------------------------------------------------------------
(* Knowledge of the server *)

HearEvent(e) ==
  \/ \E t \in inFlight : t.kind = "apply" /\ HearCommit(t) /\ server'.applied = e.applied
  \/ AdvanceTo(e.applied)

MarkEvent(e) ==
  \E t \in inFlight : t.kind = "copy" /\ t.mark = e.mark /\ t.covers = e.covers /\ HearCommit(t)

StandingEvent(e) ==
  CASE e.standing = "current" -> MakeCurrent
    [] e.standing = "following" -> IF Current THEN FallSilent ELSE Either(Attached)
    [] e.standing = "detached" ->
         IF ~Attached THEN Nothing
         ELSE IF server.phase = SqliteOnly THEN StopFollowing ELSE Detach \/ LoseConnection

(* The phase becomes the current one. *)
PhaseEvent(e) ==
  \/ e.phase = server.phase /\ Nothing
  \/ (EnterPhase \/ TargetHasTakenOver) /\ server'.phase = e.phase

GateEvent(e) ==
  IF e.open
  THEN IF FenceOpen THEN Nothing ELSE server.step # "asking" /\ GiveUp
  ELSE BeginDualWrite \/ BeginReadPostgres \/ BeginReturn \/ BeginLastStep

(* Attaching may begin again at any of its steps. *)
InspectEvent ==
  /\ MayAttach
  /\ server' = [server EXCEPT !.inspected = Found("found")]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* LeaseGuard: a server that is contested or fenced only refuses more. *)
GuardEvent(after) ==
  /\ server.up /\ server' = after
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

ServerEvent(e) ==
  CASE e.kind = "applied" -> HearEvent(e)
    [] e.kind = "mark" -> MarkEvent(e)
    [] e.kind = "standing" -> StandingEvent(e)
    [] e.kind = "phase" -> PhaseEvent(e)
    [] e.kind = "gate" -> GateEvent(e)
    [] e.kind = "inspect" -> target.applied = e.applied /\ InspectEvent
    [] e.kind = "contested" -> GuardEvent([server EXCEPT !.contested = TRUE])
    [] e.kind = "proved" -> GuardEvent([server EXCEPT !.contested = FALSE])
    [] e.kind = "fenced" -> GuardEvent([server EXCEPT !.fenced = TRUE])

-----------------------------------------------------------------------------
(* Processes and faults *)

(* A process begins; its session may claim the target before the phase is current. *)
Launch(e) ==
  /\ ~server.up /\ server' = Down(e.session)
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* Start and StartInLastStep in steps: claims and changes of the source are separate events. *)
StartWith(e) ==
  /\ ~server.up
  /\ IF e.phase = PostgresOnly THEN target.phase = PostgresOnly
     ELSE /\ ~source.completing /\ e.phase = source.phase
          /\ targetUp => target.phase # PostgresOnly
  /\ server' = [Down(server.incarnation) EXCEPT !.up = TRUE, !.phase = e.phase, !.committed = source.revision]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* Entries read but not sent when the target stopped may be sent afterwards. *)
DownEvent ==
  /\ targetUp' = FALSE
  /\ UNCHANGED <<source, target, backup, inFlight, server, clients, faults>>

SetBackEvent(e) ==
  /\ target' = [row |-> [i \in Ids |-> e.row[i]], tomb |-> [i \in Ids |-> e.tomb[i]], phase |-> e.phase,
                holder |-> e.session, applied |-> e.applied, copied |-> e.copied, begun |-> e.begun]
  /\ faults' = [faults EXCEPT !.setBacks = @ + 1]
  /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients>>

WorldEvent(e) ==
  CASE e.kind = "launch" -> Launch(e)
    [] e.kind = "start" -> StartWith(e)
    [] e.kind = "crash" -> IF server.up THEN CrashWith(e.late) ELSE Nothing
    [] e.kind = "down" -> DownEvent
    [] e.kind = "up" -> TargetStarts
    [] e.kind = "set_back" -> SetBackEvent(e)
    [] e.kind = "take_over" -> TakeOver
    [] e.kind = "rival_leaves" -> RivalLeaves

Explained(e) ==
  CASE e.about = "write" -> WriteEvent(e)
    [] e.about = "read" -> ReadEvent(e)
    [] e.about = "source" -> SourceEvent(e)
    [] e.about = "target" -> TargetEvent(e)
    [] e.about = "page" -> PageEvent(e)
    [] e.about = "server" -> ServerEvent(e)
    [] e.about = "world" -> WorldEvent(e)

(* Steps that are not recorded. *)
InternalStep(e) ==
  \/ e.kind = "set_phase" /\ AttachReconcile /\ source' = source
  \/ e.kind = "finish" /\ SendFinish

TraceNext ==
  /\ position <= Len(Events)
  /\ \/ Explained(Events[position]) /\ position' = position + 1
     \/ InternalStep(Events[position]) /\ position' = position

TraceSpec == TraceInit /\ [][TraceNext]_traceVars

-----------------------------------------------------------------------------
(* Violated: every event is explained. Prints how far the explanation has come. *)
NotAtEnd ==
  /\ IF position > TLCGet(1) THEN TLCSet(1, position) /\ PrintT(<<"explained", position - 1>>) ELSE TRUE
  /\ position <= Len(Events)

ASSUME TLCSet(1, 0)
=============================================================================
