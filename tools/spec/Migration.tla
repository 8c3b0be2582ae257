----------------------------- MODULE Migration ------------------------------
(***************************************************************************)
(* The live migration from SQLite to PostgreSQL: failures, the whole       *)
(* system, and what must hold. docs/explanation/specification.md explains  *)
(* these modules to readers who do not know TLA+.                          *)
(***************************************************************************)
EXTENDS Phases

(* Failures *)

(* A connection fails: Replicator._run catches StorageError. *)
Detach ==
  /\ server.up /\ Attached
  /\ IF targetUp THEN Spend("cuts", MaxCuts) ELSE UNCHANGED faults
  /\ server' = Detached /\ LetGo
  /\ UNCHANGED <<source, target, targetUp, backup, writes, floor, absences, broken>>

(* Replicator._connection_lost: a connection is lost, so the target is compared before it answers reads. *)
(* Transactions that were sent are still awaited.                                               *)
LoseConnection ==
  /\ Included("lost connections") /\ server.up /\ Attached /\ Spend("cuts", MaxCuts)
  /\ server' = Detached /\ reads' = ReadsFallBack
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, writes, floor, absences, broken>>

(* Fallback.watch_silence: no answer within `patience`, so the source serves alone. *)
FallSilent ==
  /\ server.up /\ Current /\ Spend("cuts", MaxCuts)
  /\ server' = [server EXCEPT !.standing = "following"]
  /\ reads' = ReadsFallBack
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, writes, floor, absences, broken>>

TargetStops ==
  /\ targetUp /\ Spend("cuts", MaxCuts)
  /\ targetUp' = FALSE
  /\ inFlight' = {t \in inFlight : t.state = "done"}
  /\ UNCHANGED <<source, target, backup, server, clients>>

TargetStarts ==
  /\ ~targetUp /\ targetUp' = TRUE
  /\ UNCHANGED <<source, target, backup, inFlight, server, clients, faults>>

(* A backup of the target is taken, and restored later. *)
TakeBackup ==
  /\ faults.setBacks < MaxSetBacks /\ targetUp /\ target.phase # PostgresOnly
  /\ target.holder # NoHolder /\ backup # target
  /\ backup' = target
  /\ UNCHANGED <<source, target, targetUp, inFlight, server, clients, faults>>

SetBack ==
  /\ Spend("setBacks", MaxSetBacks)
  /\ target.phase # PostgresOnly /\ backup # target /\ backup.holder # NoHolder
  /\ target' = backup
  /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients>>

(* Another server's claim: the first one's lease has expired. *)
TakeOver ==
  /\ Spend("takeOvers", MaxTakeOvers)
  /\ targetUp /\ target.phase # PostgresOnly /\ target.holder \notin {NoHolder, OtherServer, FormerServer}
  /\ target' = [target EXCEPT !.holder = OtherServer]
  /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients>>

RivalLeaves ==
  /\ target.holder = OtherServer
  /\ target' = [target EXCEPT !.holder = FormerServer]
  /\ UNCHANGED <<source, targetUp, backup, inFlight, server, clients, faults>>

(* In the last phase a write that was sent to the target may commit after the crash: `late`. *)
CrashWith(late) ==
  /\ server.up /\ Spend("crashes", MaxCrashes)
  /\ server' = Down(server.incarnation)
  /\ inFlight' = Forsaken(Replication \union {"finish"})
  /\ writes' = [c \in Writers |->
       IF c \in late /\ writes[c].state # "none" THEN [writes[c] EXCEPT !.state = "orphan"] ELSE NoCall]
  /\ reads' = [c \in Readers |-> NoRead]
  /\ UNCHANGED <<source, target, targetUp, backup, floor, absences, broken>>

Crash == CrashWith({})

Started(phase) ==
  [Down(server.incarnation + 1) EXCEPT !.up = TRUE, !.phase = phase, !.committed = source.revision]

(* migration/migrating_service.py MigratingService._open, when the last step has not begun. *)
Start ==
  /\ ~server.up /\ ~source.completing /\ source.phase # PostgresOnly
  /\ targetUp => (target.phase # PostgresOnly /\ target.holder # OtherServer)   \* else the start is refused
  /\ server' = Started(source.phase)
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* MigratingService._resume_cutover: claiming ends a finish in progress. *)
StartInLastStep ==
  /\ ~server.up /\ (source.completing \/ source.phase = PostgresOnly)
  /\ targetUp /\ target.holder # OtherServer
  /\ IF target.phase = PostgresOnly
     THEN /\ server' = Started(PostgresOnly)
          /\ source' = [source EXCEPT !.phase = PostgresOnly]
          /\ UNCHANGED target
     ELSE /\ server' = Started(source.phase)
          /\ source' = [source EXCEPT !.completing = FALSE]
          /\ target' = [target EXCEPT !.holder = server.incarnation + 1]
  /\ UNCHANGED <<targetUp, backup, inFlight, clients, faults>>

-----------------------------------------------------------------------------
(* The whole system *)

OperatorSteps == ClaimForDualWrite \/ BeginDualWrite \/ BeginReadPostgres \/ BeginLastStep \/ ToBackfill \/ Back
ChangeSteps ==
  BeginReturn \/ CommitDualWrite \/ CommitReadPostgres \/ CommitReturn \/ CommitCompleting
  \/ EnterPhase \/ MakeCurrent \/ StopFollowing
LastSteps == SendFinish \/ TargetHasTakenOver \/ TargetHasNotTakenOver \/ Archive
AttachSteps ==
  AttachAtOnce \/ FindRival \/ AttachInspect \/ AttachClaim \/ AttachReconcile \/ AttachSetPhase \/ AttachFails
FollowSteps == SendBatch \/ AdvanceWithoutEntries \/ SendPage \/ Prune
Notices == HearSetBack \/ HearLeaseLost \/ (\E t \in inFlight : HearMismatch(t))
TargetCommits == \E t \in inFlight : CommitTransaction(t)
ServerHears == \E t \in inFlight : HearCommit(t)
TransactionLost == \E t \in inFlight : LoseTransaction(t)
Faults ==
  GiveUp \/ Detach \/ LoseConnection \/ FallSilent \/ TargetStops \/ LoseFinishAnswer \/ TransactionLost
  \/ TakeBackup \/ SetBack \/ TakeOver \/ RivalLeaves \/ Crash
Recovery == TargetStarts \/ Start \/ StartInLastStep
WriteSteps(c) ==
  (\E i \in Ids, delete \in BOOLEAN : BeginWrite(c, i, delete)) \/ AbandonWrite(c)
  \/ CommitWrite(c) \/ CommitWriteInTarget(c) \/ Acknowledge(c)
ReadSteps(c) == (\E i \in Ids : BeginRead(c, i)) \/ Snapshot(c) \/ FailRead(c) \/ EndRead(c)

Next ==
  \/ OperatorSteps \/ ChangeSteps \/ LastSteps \/ AttachSteps \/ FollowSteps \/ Notices
  \/ TargetCommits \/ ServerHears \/ Faults \/ Recovery \/ LearnCommitted
  \/ Included("requeue") /\ source.revision < MaxRevision /\ \E i \in Ids : Requeue(i)
  \/ \E c \in Writers : WriteSteps(c)
  \/ \E c \in Readers : ReadSteps(c)

Spec == Init /\ [][Next]_vars

(* Fairness: an action that stays enabled is taken eventually; failures, clients and the operator may stop. *)
FairSpec ==
  /\ Spec
  /\ WF_vars(TargetStarts) /\ WF_vars(Start \/ StartInLastStep)
  /\ WF_vars(AttachSteps) /\ WF_vars(SendBatch) /\ WF_vars(AdvanceWithoutEntries) /\ WF_vars(Prune)
  /\ WF_vars(TargetCommits) /\ WF_vars(ServerHears) /\ WF_vars(TransactionLost) /\ WF_vars(Notices)
  /\ WF_vars(~targetUp /\ Detach) /\ WF_vars(EnterPhase) /\ WF_vars(StopFollowing)
  /\ WF_vars(CommitDualWrite \/ CommitReadPostgres \/ CommitReturn \/ CommitCompleting \/ MakeCurrent \/ SendFinish \/ GiveUp)
  /\ WF_vars(TargetHasTakenOver \/ TargetHasNotTakenOver)
  /\ WF_vars(LearnCommitted) /\ WF_vars(\E c \in Writers : CommitWrite(c) \/ Acknowledge(c))

-----------------------------------------------------------------------------
(* Invariants *)

(* The authoritative store has every acknowledged write, and everything that a client has read. *)
NoLostAck ==
  \A i \in Ids : Fits(IF target.phase = PostgresOnly THEN target.row[i] ELSE source.row[i], i, floor[i])

(* A read returns no state older than one acknowledged or read before it began. *)
ReadYourWrites == "stale read" \notin broken

(* With an empty journal and a complete backfill both stores have the same messages. *)
Convergence ==
  (/\ Journals(source.phase) /\ target.phase # PostgresOnly /\ source.journal = {}
   /\ target.applied >= source.revision /\ target.copied = Ids)
  => target.row = source.row

(* The rule by which `durable_on` names both stores: journalled and applied, or copied. *)
Due(i, applied, copied) == Latest(source, i) <= applied /\ (Latest(source, i) > source.base \/ i \in copied)
Has(i) == Fits(target.row[i], i, Latest(source, i))

(* PostgreSQL was set back, and the server has not detected it yet. *)
SetBackUnnoticed ==
  server.up /\ Attached /\ (target.applied < server.position \/ ~(server.mark \subseteq target.copied))

(* The target has everything that its record, or the server, considers applied or copied. *)
AppliedIsTrue ==
  target.phase # PostgresOnly =>
    /\ Journals(source.phase) =>
         \A i \in Ids : Due(i, target.applied, target.copied) => Has(i)
    /\ (server.up /\ Attached /\ Journals(server.phase) /\ ~SetBackUnnoticed) =>
         \A i \in Ids : Due(i, server.applied, server.mark) => Has(i)

(* A deleted message does not come back. *)
NoResurrection ==
  \A i \in Ids : target.row[i] # 0 =>
    /\ target.row[i] > target.tomb[i]
    /\ ~(/\ target.phase # PostgresOnly /\ target.row[i] < source.tomb[i] /\ Journals(source.phase)
         /\ target.applied >= source.tomb[i] /\ source.tomb[i] > source.base)

(* No server takes writes into SQLite after PostgreSQL has become the only store. *)
OneStore ==
  ~(server.up /\ server.phase # PostgresOnly /\ target.phase = PostgresOnly /\ server.step = "none")

(* A fenced server acknowledges no write. *)
NoAckAfterFence == "acknowledged when fenced" \notin broken

(* No transaction commits in the target without the lease. *)
LeaseHeld == "committed without the lease" \notin broken

TypeOK ==
  /\ source.revision \in 1..MaxRevision
  /\ source.phase \in SqliteOnly..PostgresOnly /\ target.phase \in SqliteOnly..PostgresOnly
  /\ server.standing \in {"detached", "following", "current"}
  /\ server.step \in {"none", "closed", "changed", "asking"}
  /\ Cardinality(inFlight) <= 6

(* Liveness: the target reaches the end of the journal, or there is no journal any more. *)
Drains ==
  [](Journals(source.phase) =>
       <>(~Journals(source.phase) \/ \A e \in source.journal : e[1] <= target.applied))

(* Liveness: the server detects that the target was set back. *)
NoticesSetBack == [](SetBackUnnoticed => <>~SetBackUnnoticed)
=============================================================================
