PRAGMA application_id = 1398031449;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE batches (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        ticket TEXT NOT NULL UNIQUE,
        claim TEXT UNIQUE,
        name TEXT NOT NULL,
        suffix TEXT NOT NULL,
        source TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        digest TEXT,
        key TEXT,
        image_name TEXT,
        folder TEXT,
        tries INTEGER NOT NULL DEFAULT 0,
        next_line INTEGER NOT NULL DEFAULT 0,
        refused_rows INTEGER NOT NULL DEFAULT 0,
        last_rank REAL NOT NULL DEFAULT 0,
        recorded_at INTEGER,
        cancelled INTEGER NOT NULL DEFAULT 0,
        paused INTEGER NOT NULL DEFAULT 0,
        archived INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        warnings TEXT NOT NULL DEFAULT '[]',
        n_queued INTEGER NOT NULL DEFAULT 0,
        n_generating INTEGER NOT NULL DEFAULT 0,
        n_completed INTEGER NOT NULL DEFAULT 0,
        n_failed INTEGER NOT NULL DEFAULT 0,
        n_cancelled INTEGER NOT NULL DEFAULT 0, axes TEXT, eta_at INTEGER);
INSERT INTO "batches" VALUES(1,'1a000000-0000-4000-8000-000000000000','1a000000-0000-4000-8000-000000000000','cats.yaml','.yaml','file',10,NULL,NULL,NULL,NULL,0,0,0,0.0,20,0,0,0,NULL,'[]',0,1,1,1,0,NULL,NULL);
INSERT INTO "batches" VALUES(2,'1a000000-0000-4000-8000-000000000001','1a000000-0000-4000-8000-000000000001','night.csv','.csv','file',50,NULL,NULL,NULL,NULL,0,3,0,3.0,NULL,0,0,0,NULL,'[]',3,0,0,0,0,NULL,NULL);
INSERT INTO "batches" VALUES(3,'1a000000-0000-4000-8000-000000000002','1a000000-0000-4000-8000-000000000002','bad.yaml','.yaml','file',60,NULL,NULL,NULL,NULL,1,0,0,0.0,61,0,0,0,'{"code":"bad_yaml","message":"no"}','[]',0,0,0,0,0,NULL,NULL);
INSERT INTO "batches" VALUES(4,'2a000000-0000-4000-8000-000000000000','2a000000-0000-4000-8000-000000000000','owls.csv','.csv','file',1796041946711073,NULL,NULL,NULL,NULL,0,0,0,0.0,100,0,0,0,NULL,'[]',2,0,0,0,0,NULL,NULL);
CREATE TABLE deliveries (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        event TEXT NOT NULL,
        ticket TEXT NOT NULL,
        job_id TEXT,
        endpoint TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'dead')),
        attempt INTEGER NOT NULL DEFAULT 0,
        next_at INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        ended_at INTEGER,
        last_status INTEGER,
        last_error TEXT,
        body TEXT NOT NULL);
CREATE TABLE image_names (folded TEXT NOT NULL, folder TEXT NOT NULL,
        family TEXT NOT NULL, n INTEGER NOT NULL, job_id TEXT NOT NULL,
        PRIMARY KEY (folded, folder)) WITHOUT ROWID;
INSERT INTO "image_names" VALUES('cat','20261122','20261122/cat',1,'1a000000-0000-4000-8000-000000000000');
INSERT INTO "image_names" VALUES('imggen_102959','20261122','*/imggen_102959',1,'1a000001-a4f1-8db4-8085-2812d2a61145');
INSERT INTO "image_names" VALUES('imggen_102959_2','20261122','*/imggen_102959',2,'1a000002-240a-85e0-b71a-3241c1d99e55');
INSERT INTO "image_names" VALUES('imggen_102959_3','20261122','*/imggen_102959',3,'1a000000-0000-4000-8000-000000000001');
INSERT INTO "image_names" VALUES('imggen_102959_4','20261122','*/imggen_102959',4,'1a000001-1b52-81fc-8fc5-12ba02b9293f');
INSERT INTO "image_names" VALUES('imggen_102959_5','20261122','*/imggen_102959',5,'1a000002-1e54-8776-a651-5a94d603c458');
INSERT INTO "image_names" VALUES('imggen_102959_6','20261122','*/imggen_102959',6,'2a000000-0000-4000-8000-000000000000');
INSERT INTO "image_names" VALUES('portrait','20261122','20261122/portrait',1,'2a000001-0eaf-87cd-aca9-37aae7399580');
CREATE TABLE inputs (ticket TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL,
        PRIMARY KEY (ticket, name, sha256)) WITHOUT ROWID;
CREATE TABLE job_counts (state TEXT PRIMARY KEY, n INTEGER NOT NULL);
INSERT INTO "job_counts" VALUES('queued',5);
INSERT INTO "job_counts" VALUES('generating',1);
INSERT INTO "job_counts" VALUES('completed',1);
INSERT INTO "job_counts" VALUES('failed',1);
INSERT INTO "job_counts" VALUES('cancelled',0);
CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        ticket TEXT NOT NULL,
        idx INTEGER NOT NULL,
        state TEXT NOT NULL CHECK
            (state IN ('queued', 'generating', 'completed', 'failed', 'cancelled')),
        rev INTEGER NOT NULL,
        class INTEGER NOT NULL,
        rank REAL NOT NULL,
        held TEXT,
        not_before INTEGER,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        attempt INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        watcher_deaths INTEGER NOT NULL DEFAULT 0,
        image_name TEXT NOT NULL,
        folder TEXT NOT NULL,
        path TEXT NOT NULL,
        prompt TEXT NOT NULL,
        request TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        started_at INTEGER,
        completed_at INTEGER,
        error_code TEXT,
        error_message TEXT,
        sha256 TEXT,
        bytes INTEGER,
        deleted_at INTEGER,
        warnings TEXT,
        facts TEXT,
        history TEXT, row INTEGER, model TEXT NOT NULL DEFAULT '', passed_at INTEGER, loras TEXT NOT NULL DEFAULT '', forwards INTEGER, rating INTEGER NOT NULL DEFAULT 0, awaits TEXT);
INSERT INTO "jobs" VALUES(1,'1a000000-0000-4000-8000-000000000000','1a000000-0000-4000-8000-000000000000',0,'completed',5,1,1.0,NULL,NULL,0,1,0,0,'cat','20261122','20261122/cat.png','a cat, it''s red','{"height":64,"width":64,"num_inference_steps":9,"seed":7,"format":"png","label":"first","metadata":{"sku":"A-1"}}',20,30,40,NULL,NULL,'0000000000000000000000000000000000000000000000000000000000000000',123,NULL,'["no effect"]','{"model":"starter","timings":{"denoise":1.5}}',NULL,NULL,'',NULL,'',NULL,4,NULL);
INSERT INTO "jobs" VALUES(2,'1a000001-a4f1-8db4-8085-2812d2a61145','1a000000-0000-4000-8000-000000000000',1,'failed',7,1,2.0,NULL,NULL,0,1,0,0,'ImgGen_102959','20261122','20261122/ImgGen_102959.png','a dog','{"height":64,"width":64,"num_inference_steps":1,"seed":7,"format":"png"}',20,31,41,'out_of_memory','too large',NULL,NULL,NULL,NULL,'{}',NULL,NULL,'',NULL,'',NULL,0,NULL);
INSERT INTO "jobs" VALUES(3,'1a000002-240a-85e0-b71a-3241c1d99e55','1a000000-0000-4000-8000-000000000000',2,'generating',13,1,3.0,NULL,NULL,0,2,0,1,'ImgGen_102959_2','20261122','20261122/ImgGen_102959_2.png','a fox 狐','{"height":64,"width":64,"num_inference_steps":4,"seed":7,"format":"png"}',20,70,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'{"attempt":1,"why":"the service died","at":42}
',NULL,'',NULL,'',NULL,0,NULL);
INSERT INTO "jobs" VALUES(4,'1a000000-0000-4000-8000-000000000001','1a000000-0000-4000-8000-000000000001',0,'queued',10,2,1.0,NULL,NULL,0,0,0,0,'ImgGen_102959_3','20261122','20261122/ImgGen_102959_3.png','night 0','{"height":64,"width":64,"num_inference_steps":9,"seed":7,"format":"png"}',51,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,'',NULL,0,NULL);
INSERT INTO "jobs" VALUES(5,'1a000001-1b52-81fc-8fc5-12ba02b9293f','1a000000-0000-4000-8000-000000000001',1,'queued',11,2,2.0,NULL,NULL,0,0,0,0,'ImgGen_102959_4','20261122','20261122/ImgGen_102959_4.png','night 1','{"height":64,"width":64,"num_inference_steps":9,"seed":7,"format":"png"}',51,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,'',NULL,0,NULL);
INSERT INTO "jobs" VALUES(6,'1a000002-1e54-8776-a651-5a94d603c458','1a000000-0000-4000-8000-000000000001',2,'queued',12,2,3.0,NULL,NULL,0,0,0,0,'ImgGen_102959_5','20261122','20261122/ImgGen_102959_5.png','night 2','{"height":64,"width":64,"num_inference_steps":9,"seed":7,"format":"png"}',51,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,'',NULL,0,NULL);
INSERT INTO "jobs" VALUES(7,'2a000000-0000-4000-8000-000000000000','2a000000-0000-4000-8000-000000000000',0,'queued',14,1,14.0,NULL,NULL,0,0,0,0,'ImgGen_102959_6','20261122','20261122/ImgGen_102959_6.png','an owl','{"height":128,"width":64,"num_inference_steps":9,"model":"base","seed":7,"lora":[{"name":"ink","weight":1.0}],"label":"Order 66","metadata":{"client":"Ärzte"}}',100,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'base',NULL,'ink',NULL,0,NULL);
INSERT INTO "jobs" VALUES(8,'2a000001-0eaf-87cd-aca9-37aae7399580','2a000000-0000-4000-8000-000000000000',1,'queued',15,1,15.0,NULL,NULL,0,0,0,0,'Portrait','20261122','20261122/Portrait.png','a barn owl','{"height":64,"width":64,"num_inference_steps":9,"seed":8,"name":"Portrait"}',100,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,'',NULL,0,NULL);
CREATE TABLE listeners (event TEXT NOT NULL, endpoint TEXT NOT NULL,
        PRIMARY KEY (event, endpoint)) WITHOUT ROWID;
CREATE TABLE queue (one INTEGER PRIMARY KEY CHECK (one = 1), rev INTEGER NOT NULL,
        streak INTEGER NOT NULL, bulk_time REAL NOT NULL);
INSERT INTO "queue" VALUES(1,15,1,0.0);
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "settings" VALUES('paused','{"why":"person"}');
CREATE INDEX batches_unrecorded ON batches (seq) WHERE recorded_at IS NULL;
CREATE INDEX batches_unarchived ON batches (seq) WHERE archived = 0
        AND recorded_at IS NOT NULL AND n_queued + n_generating = 0;
CREATE INDEX jobs_ready ON jobs (class, rank, seq)
        WHERE state = 'queued' AND held IS NULL;
CREATE INDEX jobs_held ON jobs (held, not_before) WHERE state = 'queued' AND held IS NOT NULL;
CREATE INDEX jobs_generating ON jobs (seq) WHERE state = 'generating';
CREATE INDEX jobs_by_state ON jobs (state, seq);
CREATE INDEX jobs_by_created ON jobs (created_at, seq);
CREATE UNIQUE INDEX jobs_by_rev ON jobs (rev);
CREATE UNIQUE INDEX jobs_by_place ON jobs (ticket, idx);
CREATE INDEX image_names_family ON image_names (family, n) WHERE n > 1;
CREATE TRIGGER jobs_counted_out AFTER DELETE ON jobs BEGIN UPDATE job_counts SET n = n - 1 WHERE state = OLD.state;
            UPDATE batches SET n_queued = n_queued - (OLD.state = 'queued'), n_generating = n_generating - (OLD.state = 'generating'), n_completed = n_completed - (OLD.state = 'completed'), n_failed = n_failed - (OLD.state = 'failed'), n_cancelled = n_cancelled - (OLD.state = 'cancelled') WHERE ticket = OLD.ticket; END;
CREATE TRIGGER jobs_counted_over AFTER UPDATE OF state ON jobs
            WHEN OLD.state <> NEW.state BEGIN UPDATE job_counts SET n = n - 1 WHERE state = OLD.state; UPDATE job_counts SET n = n + 1 WHERE state = NEW.state;
            UPDATE batches SET n_queued = n_queued + (NEW.state = 'queued') - (OLD.state = 'queued'), n_generating = n_generating + (NEW.state = 'generating') - (OLD.state = 'generating'), n_completed = n_completed + (NEW.state = 'completed') - (OLD.state = 'completed'), n_failed = n_failed + (NEW.state = 'failed') - (OLD.state = 'failed'), n_cancelled = n_cancelled + (NEW.state = 'cancelled') - (OLD.state = 'cancelled') WHERE ticket = NEW.ticket; END;
CREATE INDEX jobs_by_model ON jobs (model, class, rank, seq)
        WHERE state = 'queued' AND held IS NULL;
CREATE INDEX jobs_by_loras ON jobs (loras, model, class, rank, seq)
        WHERE state = 'queued' AND held IS NULL AND loras <> '';
CREATE INDEX jobs_rated ON jobs (seq, rating) WHERE rating <> 0;
CREATE INDEX jobs_pictured ON jobs (created_at) WHERE state = 'completed' AND deleted_at IS NULL;
CREATE INDEX batches_open ON batches (seq) WHERE archived = 0;
CREATE INDEX jobs_awaiting ON jobs (awaits) WHERE state = 'queued' AND awaits IS NOT NULL;
CREATE INDEX inputs_by_content ON inputs (sha256);
CREATE INDEX deliveries_queued ON deliveries (endpoint, seq) WHERE state = 'pending';
CREATE INDEX deliveries_in_order ON deliveries (endpoint, job_id, seq) WHERE state = 'pending';
CREATE INDEX deliveries_ended ON deliveries (state, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX deliveries_of ON deliveries (ticket, endpoint);
CREATE TRIGGER jobs_told AFTER UPDATE OF state ON jobs
            WHEN OLD.state <> NEW.state AND NEW.state IN ('completed', 'failed', 'cancelled')
                AND (instr(NEW.request, '"webhook"') OR EXISTS (SELECT 1 FROM listeners))
            BEGIN INSERT INTO deliveries (id, event, ticket, job_id, endpoint, next_at, created_at, body)
            SELECT 'msg_' || lower(hex(randomblob(16))), 'job.' || NEW.state, NEW.ticket, NEW.id,
                endpoint, NEW.completed_at, NEW.completed_at, json_object('seq', NEW.seq, 'id', NEW.id, 'ticket', NEW.ticket, 'idx', NEW.idx, 'state', NEW.state, 'rev', NEW.rev, 'class', NEW.class, 'rank', NEW.rank, 'held', NEW.held, 'not_before', NEW.not_before, 'cancel_requested', NEW.cancel_requested, 'attempt', NEW.attempt, 'deaths', NEW.deaths, 'watcher_deaths', NEW.watcher_deaths, 'image_name', NEW.image_name, 'folder', NEW.folder, 'path', NEW.path, 'prompt', NEW.prompt, 'request', NEW.request, 'created_at', NEW.created_at, 'started_at', NEW.started_at, 'completed_at', NEW.completed_at, 'error_code', NEW.error_code, 'error_message', NEW.error_message, 'sha256', NEW.sha256, 'bytes', NEW.bytes, 'deleted_at', NEW.deleted_at, 'warnings', NEW.warnings, 'facts', NEW.facts, 'history', NEW.history, 'row', NEW.row, 'model', NEW.model, 'passed_at', NEW.passed_at, 'loras', NEW.loras, 'forwards', NEW.forwards, 'rating', NEW.rating, 'awaits', NEW.awaits)
            FROM (SELECT endpoint FROM listeners WHERE event = 'job.' || NEW.state
                UNION SELECT json_extract(NEW.request, '$.webhook')) WHERE endpoint IS NOT NULL;
            END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('batches',4);
INSERT INTO "sqlite_sequence" VALUES('jobs',8);
COMMIT;
