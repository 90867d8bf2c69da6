"""What the `deepspeed` launcher starts on every rank; all it does is in msa_train.training.

deepspeed --num_gpus 2 launch/train.py --config FILE [--dotted.key value ...] [--resume]
"""

from msa_train.training.trainer import main

if __name__ == "__main__":  # Megatron's checkpointing imports the main module again
    main()
