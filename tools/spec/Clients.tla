------------------------------ MODULE Clients -------------------------------
(* Calls of clients: writes and reads, as in migration/router.py. *)
EXTENDS Stores

(* Writes: migration/router.py Router._write *)

(* A write passes the fence and is queued for the source (or sent to the target in the last phase). *)
BeginWrite(c, i, delete) ==
  /\ server.up /\ FenceOpen /\ ~TakenOver
  /\ writes[c].state = "none" /\ source.revision < MaxRevision
  /\ writes' = [writes EXCEPT ![c] = [state |-> "queued", id |-> i, delete |-> delete, revision |-> 0]]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, reads, floor, absences, broken, faults>>

(* The caller has disconnected. A queued write stays in the queue, or in transit to the target. *)
AbandonWrite(c) ==
  /\ writes[c].state \in {"queued", "committed"} /\ Spend("cuts", MaxCuts)
  /\ writes' = [writes EXCEPT ![c] = IF @.state = "queued"
                                     THEN [@ EXCEPT !.state = "orphan"] ELSE NoCall]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, reads, floor, absences, broken>>

Changed(store, c, revision) ==
  [store EXCEPT !.row[writes[c].id] = IF writes[c].delete THEN 0 ELSE revision,
                !.tomb[writes[c].id] = IF writes[c].delete THEN revision ELSE @]

NotesAbsence(c, revision) ==
  absences' = [absences EXCEPT ![writes[c].id] = IF writes[c].delete THEN @ \union {revision} ELSE @]

(* The source commits a write, with its journal entry in the same transaction. *)
CommitWriteAt(c, next) ==
  /\ server.up /\ writes[c].state \in {"queued", "orphan"} /\ server.phase # PostgresOnly
  /\ source' = [Changed(source, c, next) EXCEPT
                  !.revision = next,
                  !.journal = IF Journals(source.phase) THEN @ \union {<<next, writes[c].id>>} ELSE @]
  /\ NotesAbsence(c, next)
  /\ writes' = [writes EXCEPT ![c] = IF @.state = "queued"
                                     THEN [@ EXCEPT !.state = "committed", !.revision = next]
                                     ELSE NoCall]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, server, reads, floor, broken, faults>>

CommitWrite(c) == source.revision < MaxRevision /\ CommitWriteAt(c, source.revision + 1)

(* The event loop learns what the source has committed: MigrationSource.committed grows. *)
LearnCommittedUpto(revision) ==
  /\ server.up /\ server.phase # PostgresOnly /\ server.committed < revision
  /\ server' = [server EXCEPT !.committed = revision]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

LearnCommitted == LearnCommittedUpto(source.revision)

(* In the last phase the target commits writes itself. *)
CommitWriteInTargetAt(c, next) ==
  /\ targetUp /\ target.phase = PostgresOnly
  /\ \/ server.up /\ server.phase = PostgresOnly /\ writes[c].state = "queued"
     \/ (~server.up \/ server.phase = PostgresOnly) /\ writes[c].state = "orphan"
  /\ next > Latest(target, writes[c].id)
  /\ source' = [source EXCEPT !.revision = Max(@, next)]   \* the counter only: a sequence of PostgreSQL
  /\ target' = Changed(target, c, next)
  /\ NotesAbsence(c, next)
  /\ writes' = [writes EXCEPT ![c] = IF @.state = "queued"
                                     THEN [@ EXCEPT !.state = "committed", !.revision = next]
                                     ELSE NoCall]
  /\ UNCHANGED <<targetUp, backup, inFlight, server, reads, floor, broken, faults>>

(* Fallback.confirm: while the target is current it must have applied the change first. *)
Confirmed(revision) == (server.phase = ReadPostgres /\ Current) => server.applied >= revision

CommitWriteInTarget(c) ==
  source.revision < MaxRevision /\ CommitWriteInTargetAt(c, source.revision + 1)

Acknowledge(c) ==
  /\ server.up /\ writes[c].state = "committed"
  /\ server.phase = PostgresOnly \/ server.committed >= writes[c].revision
  /\ Confirmed(writes[c].revision) \/ Mistake("confirm-too-soon")
  /\ ~TakenOver \/ Mistake("ack-when-fenced")
  /\ broken' = IF TakenOver THEN broken \union {"acknowledged when fenced"} ELSE broken
  /\ floor' = [floor EXCEPT ![writes[c].id] = Max(@, writes[c].revision)]
  /\ writes' = [writes EXCEPT ![c] = NoCall]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, reads, absences, faults>>

(* storage/replication.py MigrationSource.requeue: a forced entry; no message changes. *)
Requeue(i) ==
  /\ server.up /\ Journals(source.phase)
  /\ source' = [source EXCEPT !.revision = @ + 1, !.journal = @ \union {<<source.revision + 1, i>>}]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, server, clients, faults>>

-----------------------------------------------------------------------------
(* Reads: migration/router.py Router._read *)

ReadsTarget == server.phase = PostgresOnly \/ (server.phase = ReadPostgres /\ Current)

BeginRead(c, i) ==
  /\ server.up /\ reads[c].state = "none"
  /\ reads' = [reads EXCEPT ![c] = [NoRead EXCEPT !.state = "asked", !.id = i, !.floor = floor[i],
                                      !.from = IF ReadsTarget THEN "target" ELSE "source"]]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, writes, floor, absences, broken, faults>>

(* The store takes the snapshot of the read. `seen`: what an answer of the source may show. *)
Snapshot(c) ==
  /\ server.up /\ reads[c].state = "asked"
  /\ reads[c].from = "target" => targetUp
  /\ reads' = [reads EXCEPT ![c].state = "read", ![c].seen = source.revision,
                 ![c].row = IF reads[c].from = "target" THEN target.row[reads[c].id] ELSE source.row[reads[c].id]]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, writes, floor, absences, broken, faults>>

(* Router._read_target: one read of the target fails, whether or not the target runs. *)
FailRead(c) ==
  /\ server.up /\ reads[c].state = "asked" /\ reads[c].from = "target" /\ server.phase # PostgresOnly
  /\ IF targetUp THEN Spend("cuts", MaxCuts) ELSE UNCHANGED faults
  /\ reads' = [reads EXCEPT ![c].from = IF Mistake("stale-read-failed") THEN "source unchecked" ELSE "source"]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, writes, floor, absences, broken>>

(* Router._release: an answer of the source is sent if the target does not answer reads, or has *)
(* all that the answer may show. `flush` and `confirm` wait for that.                          *)
MayLeave(read) == read.from = "source" => (Confirmed(read.seen) \/ Mistake("stale-read-routed"))

EndRead(c) ==
  /\ server.up /\ ~TakenOver /\ reads[c].state = "read" /\ MayLeave(reads[c])
  /\ LET read == reads[c]
         shown == IF read.row # 0 THEN read.row
                  ELSE Least({r \in absences[read.id] : r >= read.floor}) IN
     /\ broken' = IF Fits(read.row, read.id, read.floor) THEN broken ELSE broken \union {"stale read"}
     /\ floor' = [floor EXCEPT ![read.id] = Max(@, shown)]
  /\ reads' = [reads EXCEPT ![c] = NoRead]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, server, writes, absences, faults>>

(* Fallback.fall_back: reads of the target in progress are sent to the source. *)
ReadsFallBack ==
  [c \in Readers |-> IF reads[c].state = "asked" /\ reads[c].from = "target" /\ server.phase # PostgresOnly
                     THEN [reads[c] EXCEPT !.from = "source"] ELSE reads[c]]
=============================================================================
