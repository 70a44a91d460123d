module gptflow.example/run

go 1.19
