// Runs a task on JSON input and prints its result:
//
//	go run . [-key KEY] [-class CLASS] [-raw] TASK INPUT
//
// GPTFLOW_REDIS_URL, GPTFLOW_APP and GPTFLOW_SIGNING_KEY are those of the workers. -raw sends a bare
// Celery message instead.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	key := flag.String("key", "", "idempotency key")
	class := flag.String("class", "", "interactive, standard or batch")
	raw := flag.Bool("raw", false, "send a bare Celery message")
	script := flag.String("script", "../enqueue.lua", "the script that enqueues")
	flag.Parse()
	if flag.NArg() != 2 || !json.Valid([]byte(flag.Arg(1))) {
		fmt.Fprintln(os.Stderr, "usage: go run . [-key KEY] [-class CLASS] [-raw] TASK INPUT")
		os.Exit(2)
	}
	envelope := NewEnvelope(flag.Arg(0), json.RawMessage(flag.Arg(1)), Options{Key: *key, Class: *class})
	done, err := run(envelope, *script, *raw)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if !done {
		os.Exit(1)
	}
}

func run(envelope Envelope, script string, raw bool) (bool, error) {
	text, err := os.ReadFile(script)
	if err != nil {
		return false, err
	}
	send, connection, err := Connect(or(os.Getenv("GPTFLOW_REDIS_URL"), "redis://127.0.0.1:6379/0"))
	if err != nil {
		return false, err
	}
	defer connection.Close()
	flow := &GPTFlow{Send: send, App: os.Getenv("GPTFLOW_APP"),
		SigningKey: os.Getenv("GPTFLOW_SIGNING_KEY"), Script: string(text)}
	id := envelope.ID
	if raw {
		message, err := flow.CeleryMessage(envelope)
		if err != nil {
			return false, err
		}
		if _, err := send("LPUSH", flow.key("gf."+envelope.Class), message); err != nil {
			return false, err
		}
	} else if id, err = flow.Submit(envelope); err != nil {
		return false, err
	}
	result, err := flow.Result(id, time.Minute)
	if err != nil || result == nil {
		return false, err
	}
	fmt.Println(string(result))
	var ended struct{ State string }
	err = json.Unmarshal(result, &ended)
	return ended.State == "done", err
}
