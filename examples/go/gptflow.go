package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bytes above which an input is kept beside its job.
const inline = 64 * 1024

// Send sends one command to Redis or Valkey and gives its reply: a string, an int64, nil, or a
// []any of those. With go-redis:
//
//	func(args ...any) (any, error) {
//		reply, err := client.Do(ctx, args...).Result()
//		if err == redis.Nil {
//			return nil, nil
//		}
//		return reply, err
//	}
//
// and redis.Options{Protocol: 2}.
type Send func(args ...any) (any, error)

// GPTFlow enqueues jobs. App and SigningKey are those of the workers, Script is enqueue.lua.
type GPTFlow struct {
	Send       Send
	App        string
	SigningKey string
	Script     string
}

// Options of a job; the zero value will do.
type Options struct {
	ID        string  // by default a new one; the same id is the same job
	Key       string  // the same key, for the same tenant and task, is the same job
	Class     string  // interactive, standard or batch
	Tenant    string  //
	Deadline  float64 // Unix time after which the answer is of no use
	NotBefore float64 // Unix time before which it must not run
}

// QueueFull says that too much waits already, or that the server's memory is nearly used up.
type QueueFull struct {
	What       string
	RetryAfter time.Duration
}

func (e *QueueFull) Error() string {
	return fmt.Sprintf("the queue takes no more (%s); come back in %s", e.What, e.RetryAfter)
}

// Envelope is a job as it travels: docs/envelope.schema.json.
type Envelope struct {
	V           int             `json:"v"`
	ID          string          `json:"id"`
	Task        string          `json:"task"`
	Class       string          `json:"class"`
	Tenant      string          `json:"tenant"`
	Input       json.RawMessage `json:"input,omitempty"`
	InputRef    string          `json:"input_ref,omitempty"`
	InputSHA256 string          `json:"input_sha256,omitempty"`
	Key         string          `json:"key,omitempty"`
	Deadline    float64         `json:"deadline,omitempty"`
	NotBefore   float64         `json:"not_before,omitempty"`
}

// NewEnvelope makes the envelope of a job.
func NewEnvelope(task string, input json.RawMessage, o Options) Envelope {
	return Envelope{V: 1, ID: or(o.ID, NewID()), Task: task, Class: or(o.Class, "standard"),
		Tenant: or(o.Tenant, "default"), Input: input, Key: o.Key, Deadline: o.Deadline,
		NotBefore: o.NotBefore}
}

// Submit enqueues a job and gives its id. It may be called again after an error of the
// connection, with the same id or the same key.
func (g *GPTFlow) Submit(envelope Envelope) (string, error) {
	var given []any
	option := func(name, value string) {
		if value != "" {
			given = append(given, name, value)
		}
	}
	if len(envelope.Input) > inline {
		digest := sha256.Sum256(envelope.Input)
		option("input", string(envelope.Input))
		envelope.InputRef = g.key("input:" + envelope.ID)
		envelope.InputSHA256 = hex.EncodeToString(digest[:])
		envelope.Input = nil
	}
	wire, err := json.Marshal(envelope)
	if err != nil {
		return "", err
	}
	option("key", envelope.Key)
	option("deadline", seconds(envelope.Deadline))
	option("not_before", seconds(envelope.NotBefore))
	option("sig", g.sign(wire))
	args := append([]any{"1", g.key("job:" + envelope.ID), g.key(""), envelope.ID, string(wire),
		envelope.Class, envelope.Tenant, envelope.Task}, given...)
	reply, err := g.enqueue(args)
	if err != nil {
		return "", err
	}
	parts, ok := reply.([]any)
	if !ok || len(parts) < 2 {
		return "", fmt.Errorf("the script gave %v", reply)
	}
	switch what := fmt.Sprint(parts[1]); parts[0] {
	case "accepted", "known":
		return what, nil
	case "invalid":
		return "", fmt.Errorf("the job's %s will not do", what)
	default: // "full" or "memory"
		after, _ := time.ParseDuration(fmt.Sprint(parts[2]) + "s")
		return "", &QueueFull{What: what, RetryAfter: after}
	}
}

// Result waits for a job's result, as JSON: {state, output, error, ...}. It is nil if the job does
// not end in time.
func (g *GPTFlow) Result(id string, patience time.Duration) (json.RawMessage, error) {
	until, last := time.Now().Add(patience), "0"
	for {
		text, err := g.Send("HGET", g.key("job:"+id), "result")
		if err != nil {
			return nil, err
		}
		if result, ok := text.(string); ok {
			return json.RawMessage(result), nil
		}
		left := time.Until(until)
		if left <= 0 {
			return nil, nil
		}
		if left > 2*time.Second {
			left = 2 * time.Second
		}
		// The stream's last entry says that the job has ended; before it, the text, if asked for.
		wait := strconv.FormatInt(left.Milliseconds()+1, 10)
		reply, err := g.Send("XREAD", "COUNT", "500", "BLOCK", wait, "STREAMS", g.key("s:"+id), last)
		if err != nil {
			return nil, err
		}
		if streams, ok := reply.([]any); ok && len(streams) > 0 {
			entries := streams[0].([]any)[1].([]any)
			last = entries[len(entries)-1].([]any)[0].(string)
		}
	}
}

// CeleryMessage is a job as a bare Celery message, for LPUSH gf:{APP}:gf.CLASS. A worker records it
// when it takes it: until then nothing keeps it from being lost, no limit holds it back, and nobody
// can cancel it.
func (g *GPTFlow) CeleryMessage(envelope Envelope) (string, error) {
	wire, err := json.Marshal(envelope)
	if err != nil {
		return "", err
	}
	args := []any{json.RawMessage(wire)}
	if g.SigningKey != "" {
		args = []any{string(wire), g.sign(wire)}
	}
	type object = map[string]any
	embed := object{"callbacks": nil, "errbacks": nil, "chain": nil, "chord": nil}
	body, err := json.Marshal([]any{args, object{}, embed})
	if err != nil {
		return "", err
	}
	message, err := json.Marshal(object{
		"body":             base64.StdEncoding.EncodeToString(body),
		"content-encoding": "utf-8",
		"content-type":     "application/json",
		"headers": object{"lang": "go", "task": "gptflow.run", "id": envelope.ID,
			"root_id": envelope.ID, "parent_id": nil, "group": nil, "shadow": envelope.Task,
			"argsrepr": "('" + envelope.ID + "',)", "kwargsrepr": "{}", "retries": 0,
			"timelimit": []any{nil, nil}, "ignore_result": true},
		"properties": object{"correlation_id": envelope.ID, "delivery_mode": 2, "priority": 0,
			"delivery_info": object{"exchange": "", "routing_key": "gf." + envelope.Class},
			"body_encoding": "base64", "delivery_tag": NewID()},
	})
	return string(message), err
}

// NewID is `job_` and a UUID of version 7: ids sort by the time they were made.
func NewID() string {
	var b [16]byte
	if _, err := rand.Read(b[6:]); err != nil {
		panic(err)
	}
	now := uint64(time.Now().UnixMilli())
	binary.BigEndian.PutUint16(b[0:], uint16(now>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(now))
	b[6], b[8] = 0x70|b[6]&0x0f, 0x80|b[8]&0x3f
	return fmt.Sprintf("job_%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (g *GPTFlow) enqueue(args []any) (any, error) {
	digest := sha1.Sum([]byte(g.Script)) // as Redis names scripts
	command := append([]any{"EVALSHA", hex.EncodeToString(digest[:])}, args...)
	reply, err := g.Send(command...)
	if err == nil || !strings.HasPrefix(err.Error(), "NOSCRIPT") {
		return reply, err
	}
	if _, err := g.Send("SCRIPT", "LOAD", g.Script); err != nil {
		return nil, err
	}
	return g.Send(command...)
}

func (g *GPTFlow) key(name string) string {
	return "gf:{" + or(g.App, "gptflow") + "}:" + name
}

func (g *GPTFlow) sign(wire []byte) string {
	if g.SigningKey == "" {
		return ""
	}
	mac := hmac.New(sha256.New, []byte(g.SigningKey))
	mac.Write(wire)
	return "v1=" + hex.EncodeToString(mac.Sum(nil))
}

func seconds(unix float64) string {
	if unix == 0 {
		return ""
	}
	return strconv.FormatFloat(unix, 'f', 6, 64)
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
